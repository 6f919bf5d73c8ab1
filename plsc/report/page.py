"""The page: what the runs hold, put in order for template.html."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.metrics.intervals import wilson_interval
from plsc.metrics.verification import FARS, operating_points
from plsc.report.charts import Line, histogram_chart, line_chart
from plsc.report.pictures import HardPairs, hard_pairs, worst_classes
from plsc.report.runs import Run, is_number, read_runs
from plsc.utils.atomic import write_file
from plsc.utils.files import check_has_folder
from plsc.utils.hints import argument
from plsc.utils.lazy import require
from plsc.version import __version__

MARK = b"<!doctype html>\n<!-- plsc report -->\n"
"""Begins every report: a file that begins so may be replaced."""

# Curves of logged steps: (metric, title, label of the axis).
_CURVES = (
    ("loss", "Loss", "loss"),
    ("lr", "Learning rate", "learning rate"),
    ("images/s", "Throughput", "images per second"),
    ("data_wait", "Waiting for data", "share of the time"),
    ("grad_norm", "Gradient of the backbone", "norm"),
    ("target_cosine", "Target cosine", "mean cosine"),
    ("feature_norm", "Feature norm", "mean norm"),
)


class Figure(NamedTuple):
    """Attributes: `title`; `text`, what it shows in words; `svg`."""

    title: str
    text: str
    svg: str


class Row(NamedTuple):
    """A row of the table of verification; shares in percent as text, '' where not known."""

    run: str
    set: str
    accuracy: str
    interval: str
    std: str
    threshold: str
    auc: str
    pairs: str
    tars: list[str]


class PairSection(NamedTuple):
    """What is shown of one set in one run."""

    run: str
    set: str
    histogram: Figure
    points: list[tuple[str, str, str]]
    hard: HardPairs
    kept: str


def write_report(paths: Sequence[str | Path], output: str | Path) -> Path:
    """Write the report on the runs in some folders.

    Args:
        paths: the folders, one or more.
        output: the HTML file; an earlier report is replaced.

    Raises:
        ConfigError: a folder is not that of a run, or the file cannot be written, or is no report.
        MissingDependencyError: Matplotlib or Jinja is not installed.

    Example:
        >>> write_report(["output"], "report.html")
    """
    jinja2 = require("jinja2", "jinja2", purpose="plsc report")
    output, runs = Path(output), read_runs(paths)
    _check_output(output)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((resources.files("plsc.report") / "template.html").read_text("utf-8"))
    text = template.render(**_content(runs, mark=jinja2.utils.markupsafe.Markup))
    try:
        with write_file(output) as file:
            file.write(MARK + text.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from None
    return output


def _check_output(output: Path) -> None:
    check_has_folder(output, ConfigError)
    try:
        begin = output.read_bytes()[: len(MARK)] if output.exists() else MARK
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from None
    if begin != MARK:
        cure = f"choose another file: {argument('output', of='plsc report')}"
        raise ConfigError(f"{output} exists, is no report, and is not overwritten; {cure}")


def _content(runs: Sequence[Run], *, mark: Any) -> dict[str, Any]:
    numbers, table = itertools.count(), [row for run in runs for row in _rows(run)]
    known = [place for place in range(len(FARS)) if any(row.tars[place] for row in table)]
    return {
        "version": __version__,
        "runs": runs,
        "summary": [_summary(run) for run in runs],
        "curves": list(_curves(runs, numbers, mark)),
        "fars": [f"{FARS[place]:g}" for place in known],
        "table": [row._replace(tars=[row.tars[place] for place in known]) for row in table],
        "closed": [row for run in runs for row in _closed_rows(run)],
        "rocs": list(_rocs(runs, numbers, mark)),
        "sections": [section for run in runs for section in _sections(run, numbers, mark)],
        "classes": [(run.name, *worst_classes(run)) for run in runs if run.classes],
        "differences": _differences(runs),
        "settings": [(run.name, _changed(run.settings), _texts(run.settings)) for run in runs if run.settings],
        "starts": [(run.name, start) for run in runs for start in map(_texts, run.starts)],
        "warnings": [(run.name, warning) for run in runs for warning in run.warnings],
    }


def _summary(run: Run) -> dict[str, str]:
    last = run.steps[-1] if run.steps else {}
    speeds = [line["images/s"] for line in run.steps if is_number(line.get("images/s"))]
    facts = {
        "folder": str(run.path),
        "network": str(run.settings.get("model_name") or run.about.get("network") or ""),
        "loss": str(run.settings.get("loss_type", "")),
        "classes": str(run.settings.get("num_classes", "")),
        "steps": str(last.get("step", "")),
        "epochs done": str(run.about.get("epoch", "")),
        "last loss": _number(last.get("loss")),
        "images per second, median": _number(float(np.median(speeds)) if speeds else None),
    }
    return {name: value for name, value in facts.items() if value}


def _curves(runs: Sequence[Run], numbers: Iterator[int], mark: Any) -> Iterator[Figure]:
    for metric, title, label in _CURVES:
        lines = [Line(run.name, *run.curve(metric)) for run in runs]
        if any(len(line.x) for line in lines):
            svg = line_chart(lines, number=next(numbers), x_label="step", y_label=label)
            yield Figure(title, _in_words(lines, label), mark(svg))
    names = dict.fromkeys(
        name
        for run in runs
        for line in run.verifications
        for name in line
        if name.endswith(("/accuracy", "/top1", "/top5"))
    )
    for name in names:
        lines = [Line(run.name, *run.curve(name, of="verifications")) for run in runs]
        if any(len(line.x) for line in lines):
            svg = line_chart(lines, number=next(numbers), x_label="step", y_label="share", marked=True)
            yield Figure(name, _in_words(lines, name), mark(svg))


def _in_words(lines: Sequence[Line], label: str) -> str:
    told = [
        f"{line.label}: {label} from {_number(line.y[0])} to {_number(line.y[-1])}, least {_number(min(line.y))}, "
        f"greatest {_number(max(line.y))}, over steps {line.x[0]:g} to {line.x[-1]:g}"
        for line in lines
        if len(line.x)
    ]
    return "; ".join(told)


def _rows(run: Run) -> Iterator[Row]:
    values = run.last_verification()
    for name in dict.fromkeys(key.rpartition("/")[0] for key in values if key.endswith("/pairs")):
        own = {key.rpartition("/")[2]: value for key, value in values.items() if key.rpartition("/")[0] == name}
        accuracy, pairs = own.get("accuracy"), int(own["pairs"])
        low, high = ("", "") if accuracy is None or pairs < 1 else map(_percent, wilson_interval(accuracy, pairs))
        yield Row(
            run=run.name,
            set=name,
            accuracy=_percent(accuracy),
            interval=f"{low} to {high}" if low else "",
            std=_percent(own.get("accuracy_std")),
            threshold=_number(own.get("threshold")),
            auc=_number(own.get("auc")),
            pairs=str(pairs),
            tars=[_percent(own.get(f"tar_at_far_{far:g}")) for far in FARS],
        )


def _closed_rows(run: Run) -> Iterator[tuple[str, str, str, str, str]]:
    """(run, top-1, its interval, top-5, images) of the validation data, where there is any."""
    values = run.last_verification()
    if "val/top1" in values and values.get("val/images", 0) >= 1:
        low, high = map(_percent, wilson_interval(values["val/top1"], int(values["val/images"])))
        top5 = _percent(values.get("val/top5"))
        yield run.name, _percent(values["val/top1"]), f"{low} to {high}", top5, f"{values['val/images']:g}"


def _rocs(runs: Sequence[Run], numbers: Iterator[int], mark: Any) -> Iterator[Figure]:
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        lines = []
        for run in runs:
            found = run.scores.get(name)
            if found is not None and 0 < found.is_same.sum() < len(found.is_same):
                lines.append(Line(run.name, *_roc(found.scores, found.is_same)))
        if lines:
            svg = line_chart(
                lines, number=next(numbers), x_label="false accept rate", y_label="true accept rate", log_x=True
            )
            yield Figure(f"ROC of {name}", f"true accept rate over false accept rate of {name}", mark(svg))


def _roc(scores: Any, is_same: Any) -> tuple[Any, Any]:
    """(FAR, TAR) at each score of a different pair, from one different pair on."""
    same, different = np.sort(scores[is_same]), np.sort(scores[~is_same])[::-1]
    places = np.unique(np.geomspace(1, len(different), 300).astype(np.int64))
    thresholds = different[places - 1]
    accepted = np.searchsorted(-different, -thresholds, side="right")  # equal scores are accepted together
    return accepted / len(different), 1 - np.searchsorted(same, thresholds, side="left") / len(same)


def _sections(run: Run, numbers: Iterator[int], mark: Any) -> Iterator[PairSection]:
    for name, found in run.scores.items():
        if not len(found.scores):
            continue
        points = operating_points(found.scores, found.is_same)
        marks = [(f"FAR {far:g}", point.threshold) for far, point in points.items()]
        same, different = found.scores[found.is_same], found.scores[~found.is_same]
        svg = histogram_chart(same, different, number=next(numbers), thresholds=marks)
        told = f"scores of {len(same)} same and {len(different)} different pairs of {name}, checkpoint {run.details}"
        kept = "" if len(found.scores) == found.pairs else f"{len(found.scores)} of {found.pairs} pairs"
        yield PairSection(
            run=run.name,
            set=name,
            histogram=Figure(f"Scores of {name}", told, mark(svg)),
            points=[(f"{far:g}", f"{point.threshold:.4f}", _percent(point.tar)) for far, point in points.items()],
            hard=hard_pairs(run, name),
            kept=kept,
        )


def _changed(settings: dict[str, Any]) -> dict[str, str]:
    """The settings that differ from their defaults."""
    defaults = Config().model_dump(mode="json")
    return _texts({name: value for name, value in settings.items() if defaults.get(name, ...) != value})


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {str(name): _text(value) for name, value in values.items()}


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, each with its value in every run."""
    found = []
    for name in sorted({name for run in runs for name in run.settings}):
        values = [_text(run.settings[name]) if name in run.settings else "(not known)" for run in runs]
        if len(set(values)) > 1:
            found.append((name, values))
    return found


def _text(value: Any) -> str:
    if value is None or value == "":
        return "(none)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _percent(share: float | None) -> str:
    return f"{100 * share:.2f} %" if is_number(share) and share is not None else ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if is_number(value) else ""

"""Charts as SVG that stands in the page: no script, text as text, colors of the page's theme.

Matplotlib draws with colors that stand for others; these become variables of the page's style, so that one drawing
serves the light and the dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plsc.utils.lazy import require

SERIES = 6
"""How many lines have a color of their own; further ones begin again, with another dash."""
_DASHES = ("-", "--", ":", "-.")
_INK, _GRID = "#010203", "#020304"
_COLORS = tuple(f"#0a0b{number:02x}" for number in range(SERIES))
_POINTS = 400  # of a curve
_BINS = 60
_SIZE = (4.0, 2.6)  # inches of 72 units; the page scales it


class Line(NamedTuple):
    """Attributes: `label`; `x` and `y`, of one length."""

    label: str
    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]


def line_chart(
    lines: Sequence[Line], *, number: int, x_label: str, y_label: str, log_x: bool = False, marked: bool = False
) -> str:
    """Curves as SVG.

    Args:
        lines: each with the color of its place.
        number: of the chart in the page, which keeps its names apart from those of others.
        x_label: under the horizontal axis, with its unit.
        y_label: beside the vertical axis, with its unit.
        log_x: a logarithmic horizontal axis.
        marked: a mark at each point, as where there are few.
    """
    figure, axes = _begin(x_label, y_label)
    for place, line in enumerate(lines):
        x, y = _thinned(np.asarray(line.x, float), np.asarray(line.y, float))
        axes.plot(
            x,
            y,
            color=_COLORS[place % SERIES],
            linestyle=_DASHES[place // SERIES % len(_DASHES)],
            linewidth=1.6,
            marker="o" if marked or len(x) == 1 else None,
            markersize=3.5,
            label=line.label,
        )
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    if len(lines) > 1:
        axes.legend(fontsize=9, frameon=False)
    return _end(figure, number)


def histogram_chart(
    same: NDArray[Any], different: NDArray[Any], *, number: int, thresholds: Sequence[tuple[str, float]] = ()
) -> str:
    """Scores of same and of different pairs, each as shares of its kind, with thresholds as vertical lines."""
    figure, axes = _begin("cosine", "share of the pairs")
    every = np.concatenate([same, different])
    edges = np.linspace(min(every.min(), -0.2), max(every.max(), 1.0), _BINS + 1)
    for place, (label, scores) in enumerate((("same", same), ("different", different))):
        if len(scores):
            shares = np.histogram(scores, edges)[0] / len(scores)
            axes.stairs(shares, edges, fill=True, alpha=0.35, color=_COLORS[place])
            axes.stairs(shares, edges, color=_COLORS[place], linewidth=1.4, label=label)
    for place, (label, threshold) in enumerate(thresholds):
        axes.axvline(threshold, color=_INK, linewidth=1.1, linestyle=_DASHES[place % len(_DASHES)], label=label)
    axes.legend(fontsize=9, frameon=False)
    return _end(figure, number)


def _begin(x_label: str, y_label: str) -> tuple[Any, Any]:
    require("matplotlib", "matplotlib", purpose="plsc report")
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and chooses a backend

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, fontsize=10, color=_INK)
    axes.set_ylabel(y_label, fontsize=10, color=_INK)
    axes.tick_params(labelsize=9, colors=_INK)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_INK)
    return figure, axes


def _end(figure: Any, number: int) -> str:
    import matplotlib

    # `hashsalt` makes the names in the file depend on its content alone; labels are no formulas.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "plsc",
        "text.parse_math": False,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(settings):
        for axes in figure.axes:
            legend = axes.get_legend()
            texts = [] if legend is None else legend.get_texts()
            for text in texts:
                text.set_parse_math(False)
                text.set_color(_INK)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>c{number}-", drawing)
    drawing = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', drawing)
    for color, variable in ((_INK, "ink"), (_GRID, "grid"), *((c, f"series-{i}") for i, c in enumerate(_COLORS))):
        drawing = drawing.replace(color, f"var(--{variable})")
    return drawing.replace("xlink:href", "href")


def _thinned(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """At most `_POINTS` points: of each of as many parts of a longer curve the mean; its last point stays."""
    if len(x) <= _POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x) - 1), _POINTS - 1)
    return (
        np.append([x[part].mean() for part in parts], x[-1]),
        np.append([y[part].mean() for part in parts], y[-1]),
    )

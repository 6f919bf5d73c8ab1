"""`plsc report`: the page of real runs, its escaping, its errors, and what a browser makes of it."""

from __future__ import annotations

import html.parser
import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import plsc
from plsc.data.verification_set import VerificationSet
from plsc.engine.details import read_classes
from plsc.errors import ConfigError
from plsc.report.charts import Line, histogram_chart, line_chart
from plsc.report.page import MARK, _roc, write_report
from plsc.report.runs import read_runs
from tests._support.images import SIDE
from tests._support.manifests import edit_manifest
from tests._support.ranks import run

for package in ("jinja2", "matplotlib"):
    pytest.importorskip(package, reason=f"needs {package}, of plsc[report]")

HOSTILE = ["<script>alert(1)<", '"><img src=x onerror=alert(2)>', "'a & b'", "{{ 7 * 7 }}", "$\\frac{$"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with two runs, whose classes, set and folder have names that HTML, templates and formulas would read."""
    folder = tmp_path_factory.mktemp("report")
    rng, encoded, labels = np.random.default_rng(0), [], []
    for label, name in enumerate(HOSTILE):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(8):
            file = folder / "data" / name / f"{number}.png"
            cv2.imwrite(str(file), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
            encoded.append(file.read_bytes())
            labels.append(label)
    pairs = [(rng.integers(40), rng.integers(40)) for _ in range(40)]
    images = [encoded[place] for pair in pairs for place in pair]
    same = [labels[a] == labels[b] for a, b in pairs]
    VerificationSet("any", images, is_same=same).save(folder / "data" / "<b>set.bin")
    for name, epochs in (("one <i>", 2), ("two", 1)):
        entry = plsc.Entry()
        entry.set_dataset_dir(folder / "data")
        entry.set_val_targets("<b>set")
        entry.set_val_split(0.3)
        entry.set_image_shape((3, SIDE, SIDE))
        entry.set_model_name("ResNetTiny")
        entry.set_emb_size(16)
        entry.set_train_batch_size(10)
        entry.set_train_epochs(epochs)
        entry.set_lr(1e-3)
        entry.set_num_workers(0)
        entry.set_log_period(1)
        entry.set_model_save_dir(folder / name)
        entry.train()
    return folder


@pytest.fixture(scope="module")
def page(root):
    return write_report([root / "one <i>", root / "two"], root / "report.html")


class Elements(html.parser.HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)


def test_nothing_leaves_the_page_and_nothing_in_it_runs(page):
    elements = Elements(page.read_text())
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & set(elements.tags)
    for tag, name, value in elements.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value)
    assert "url(http" not in page.read_text() and "@import" not in page.read_text()


def test_names_from_files_are_text(root, page):
    elements = Elements(page.read_text())
    words = " ".join(elements.words)
    assert "one <i>" in words and "<b>set" in words and "i" not in elements.tags and "b" not in elements.tags
    worst = [row["class"] for name in ("one <i>", "two") for row in read_classes(max((root / name).glob("[0-9]")))]
    assert len(set(worst)) >= 3 and set(worst) <= set(HOSTILE) and all(name in words for name in worst)
    assert "<script>alert" not in page.read_text() and "<img src=x" not in page.read_text()


def test_every_section_is_there_with_its_content(page):
    text = page.read_text()
    words = " ".join(Elements(text).words)
    for title in ("Loss", "Learning rate", "Throughput", "Target cosine", "ROC of <b>set", "Scores of <b>set"):
        assert title in words, title
    for part in ("95 % interval", "Same, with the lowest scores", "Worst classes", "train_epochs", "global_batch"):
        assert part in words, part
    assert text.count("data:image/jpeg;base64,") > 20 and "No pictures" not in words
    ids = [value for _, name, value in Elements(text).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert len(text) < 2_000_000


def test_a_run_without_data_and_checkpoints_has_a_page(root, tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    lines = (root / "two" / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(lines + b'{"event": "step", "st\n[]\n')
    text = write_report([run], tmp_path / "report.html").read_text()
    assert "metrics.jsonl: left out 2 lines that cannot be read" in text and "no checkpoint was found" in text


def test_without_the_data_the_page_says_why_there_are_no_pictures(root, tmp_path):
    shutil.copytree(root / "two", tmp_path / "two")
    edit_manifest(
        tmp_path / "two" / "0", lambda content: content["about"]["settings"].update(dataset_dir="/nowhere/at all")
    )
    text = write_report([tmp_path / "two"], tmp_path / "report.html").read_text()
    assert "No pictures: verification set" in text and "data:image" not in text


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: folder / "missing", "missing: does not exist, expected the folder in which a training saved"),
        (lambda folder: folder / "two" / "metrics.jsonl", "metrics.jsonl: is a file, expected the folder"),
        (
            lambda folder: folder / "two" / "0",
            "0: is no folder of a run: .*that is a checkpoint: name the folder above",
        ),
        (lambda folder: folder / "data", "data: is no folder of a run"),
        (lambda folder: "s3://key:secret@bucket/run", "s3://bucket/run: plsc report takes local folders"),
    ],
)
def test_what_is_no_run_is_an_error(root, make, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        write_report([make(root)], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_is_given_once(root, tmp_path):
    with pytest.raises(ConfigError, match="is given 2 times, expected different runs"):
        write_report([root / "two", root / "two"], tmp_path / "report.html")


def test_runs_of_one_name_are_told_apart_by_their_folders(root, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(root / "two", tmp_path / name / "output")
    assert [run.name for run in read_runs([tmp_path / "a/output", tmp_path / "b/output"])] == ["a/output", "b/output"]


def test_only_a_report_is_replaced(root, tmp_path):
    output = tmp_path / "report.html"
    output.write_bytes(MARK + b"an earlier one")
    assert b"an earlier one" not in write_report([root / "two"], output).read_bytes()
    output.write_text("my thesis")
    with pytest.raises(ConfigError, match="exists, is no report, and is not overwritten"):
        write_report([root / "two"], output)
    with pytest.raises(ConfigError, match="there is no folder"):
        write_report([root / "two"], tmp_path / "no" / "report.html")


def test_the_roc_is_that_of_every_threshold():
    rng = np.random.default_rng(1)
    scores, same = rng.integers(0, 30, 200) / 30, rng.random(200) < 0.5
    fars, tars = _roc(scores, same)
    expected = {}
    for threshold in np.unique(scores[~same]):
        accepted = scores >= threshold
        expected[accepted[~same].mean()] = accepted[same].mean()
    assert dict(zip(fars.tolist(), tars.tolist())) == pytest.approx(expected)


def test_charts_hold_texts_as_texts_and_at_most_so_many_points():
    long = Line("$x_1$ <&>", np.arange(100_000.0), np.sin(np.arange(100_000.0)))
    svg = line_chart([long, Line("b", [1.0], [2.0])], number=3, x_label="step", y_label="loss")
    assert "$x_1$ &lt;&amp;&gt;" in svg and len(svg) < 60_000 and "<script" not in svg
    assert "#010203" not in svg and "var(--series-0)" in svg and 'id="c3-' in svg
    assert "var(--ink)" in histogram_chart(np.array([0.5]), np.array([]), number=0, thresholds=[("FAR 0.1", 0.4)])


def test_the_command_writes_the_page(root, tmp_path):
    command = ["-m", "plsc", "report", root / "two", "--output", tmp_path / "page.html"]
    _, output = run([sys.executable, *command])
    assert str(tmp_path / "page.html") in output and (tmp_path / "page.html").read_bytes().startswith(MARK)
    status, output = run([sys.executable, *command[:3], tmp_path], check=False)
    assert status == 1 and "is no folder of a run" in output


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_a_browser_shows_it(page, browser, width, scheme):
    from selenium.webdriver import Keys

    ask = browser.driver.execute_script
    browser.display(width, scheme)
    browser.events()
    browser.driver.get(page.as_uri())
    urls, complaints = browser.events()  # raises where a script has opened a dialog
    assert not complaints and [url for url in urls if not url.startswith("data:")] == [page.as_uri()]
    assert ask("return document.documentElement.scrollWidth <= innerWidth")
    assert ask("return [...document.images].every(image => image.naturalWidth > 0)")
    picture = cv2.imdecode(np.frombuffer(browser.driver.get_screenshot_as_png(), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert (np.median(picture) > 200) == (scheme == "light")
    browser.press(Keys.TAB)
    assert ask("return document.activeElement.textContent") == "To the content"


def test_the_notes_of_a_run_are_its_starts_and_warnings(root):
    notes = json.loads(Path(root, "two", "run.json").read_text())
    assert [start["ranks"] for start in notes["starts"]] == [1] and notes["starts"][0]["global_batch"] == 10
    assert isinstance(notes["warnings"], list)

"""Each example runs at small size, does what examples/README.md says, and prints what the page shows."""

from __future__ import annotations

import ast
import http.server
import importlib
import json
import os
import pickle
import re
import runpy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle
import pytest

import plsc
from plsc.checkpoint import Checkpoint
from plsc.data import sources
from plsc.metrics.identification import identification
from plsc.models import registry
from tests._support.ranks import ROOT, launch, run

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
CLASSES, IMAGES = 8, 6  # of each set that examples/draw_data.py draws here
ROW = re.compile(r"^\| \[(\S+?)\]\((\S+?)\) \| (.+?) \| `(.+?)` \| (.+?) \|$", re.MULTILINE)

pytest.importorskip("matplotlib", reason="the examples draw images with the fonts of matplotlib")
pytest.importorskip("fontTools", reason="the examples draw images with fonts, which fontTools reads")


def rows():
    """{file: (command, last line)} of the page's table."""
    found = ROW.findall((EXAMPLES / "README.md").read_text())
    return {file: (command, last.strip("`")) for _, file, _, command, last in found}


def shape_of(line):
    """A printed line with its numbers left out."""
    return re.sub(r"\d[\d,.]*", "#", line)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder in which examples run one after the other, as a user runs them, with example_data/ in it."""
    folder = tmp_path_factory.mktemp("examples")
    sizes = ["--classes", CLASSES, "--images", IMAGES, "--pairs", 40]
    run([sys.executable, EXAMPLES / "draw_data.py", *sizes], cwd=folder)
    return folder


@pytest.fixture
def example(workspace, monkeypatch, capsys):
    """A function that runs an example in this process and returns the lines that it printed."""
    monkeypatch.chdir(workspace)
    # What an example registers is not left to other tests.
    monkeypatch.setattr(registry, "_BACKBONES", {**registry._BACKBONES})
    monkeypatch.setattr(sources, "_SOURCES", [*sources._SOURCES])

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        assert shape_of(lines[-1]) == shape_of(rows()[f"{name}.py"][1]), "the page shows another last line"
        return lines

    return call


@pytest.fixture(scope="module")
def products(workspace):
    """The lines that examples/products.py printed; others begin with the network that it trained."""
    _, output = run([sys.executable, EXAMPLES / "products.py", "--epochs", 2], cwd=workspace)
    return output.splitlines()


def saved(folder, name="head.weight"):
    return Checkpoint(Path("example_output") / folder).read(name)


# The page


def test_the_page_lists_every_example():
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    folders = {f"{path.name}/README.md" for path in EXAMPLES.iterdir() if (path / "README.md").exists()}
    linked = set(re.findall(r"\]\(([\w./]+)\)", (EXAMPLES / "README.md").read_text()))
    assert files == set(rows())
    assert folders <= linked


def test_the_commands_of_the_page_run_the_file_of_their_row():
    for file, (command, _) in rows().items():
        assert f"examples/{file}" in command


@pytest.mark.parametrize("name", [*SCRIPTS, "first_run"])
def test_an_example_is_short_and_imports_what_is_public(name):
    """Names of `plsc`, and those that the pages and the reference name."""
    text = code_of(notebook()) if name == "first_run" else (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 96
    pages = "".join(page.read_text() for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plsc."):
            for alias in node.names:
                assert node.module in pages and alias.name in pages, f"{node.module}.{alias.name}"


# The examples


def test_data_that_exists_is_not_overwritten(example, workspace, capsys):
    before = sorted(workspace.rglob("example_data/**/*"))
    with pytest.raises(SystemExit) as end:
        example("draw_data")
    assert end.value.code == 2 and "not overwritten" in capsys.readouterr().err
    assert sorted(workspace.rglob("example_data/**/*")) == before


def test_characters(example):
    lines = example("characters", "--epochs", 2, "--ways", 4)
    assert lines[-2] == f"{CLASSES} characters trained, {CLASSES} others asked"
    accuracy, guessed = map(float, re.findall(r"\d\.\d+", lines[-1]))
    assert guessed == 0.25 and 0 < accuracy <= 1
    assert saved("characters").shape == (CLASSES, 64)


def test_one_shot_accuracy_is_that_of_identification():
    """With all characters of one alphabet in each trial, the order in which they are drawn does not count."""
    example = runpy.run_path(str(EXAMPLES / "characters.py"))
    embeddings = np.random.default_rng(0).normal(size=(5, 2, 3))
    embeddings[:, 1] += 2 * embeddings[:, 0]
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    labels = np.arange(5)
    both_ways = [
        identification(embeddings[:, known], labels, probes=embeddings[:, 1 - known], probe_labels=labels, ranks=[1])[1]
        for known in (0, 1)
    ]
    names = [f"Greek/character{number}" for number in labels] + ["Latin/character1"]
    found = example["one_shot_accuracy"](np.concatenate([embeddings, embeddings[:1]]), names, 5, 2000)
    assert found == pytest.approx(np.mean(both_ways), abs=0.02) and 0 < found < 1


def test_characters_reads_a_zip_as_it_is_published(workspace):
    """Folders, other files, and characters that the first zip has too."""
    example = runpy.run_path(str(EXAMPLES / "characters.py"))
    first, second = (workspace / "example_data" / "omniglot" / f"images_background_small{n}.zip" for n in (1, 2))
    seen, unseen = example["Characters"](first), example["Characters"](second)
    assert len(seen) == len(unseen) == CLASSES * IMAGES and len(seen.class_names) == CLASSES
    assert not set(seen.class_names) & set(unseen.class_names)
    assert [label for _, label in seen.items] == [n // IMAGES for n in range(len(seen))]
    assert len(example["Characters"](first, without=seen.class_names)) == 0


def test_products(products, example):
    assert shape_of(products[-1]) == shape_of(rows()["products.py"][1])
    top1, top5 = map(float, re.findall(r"top-\d ([\d.]+)", products[-1]))
    assert 0 <= top1 <= top5 <= 1
    assert any(
        re.match(r"example_data/products/product_000/00\.png: product_00\d, cosine -?\d", line) for line in products
    )
    assert len(Path("example_output/products/tables/classes.csv").read_text().splitlines()) == 1 + CLASSES
    again = example("products", "--epochs", 2)  # the run has ended: nothing is trained, and nothing is in the way
    assert again[-1] == products[-1]


def test_gallery(products, example):
    pytest.importorskip("faiss", reason="galleries need faiss")
    from plsc.inference.gallery import Gallery

    lines = example("gallery", "--threshold", 0.1)
    images = plsc.open_records("example_data/new_products")
    assert lines[-2] == f"example_output/gallery: {len(images) - CLASSES} entries of {CLASSES} names"
    assert int(lines[-1].split()[2]) == CLASSES
    gallery = Gallery.open("example_output/gallery")
    assert sorted(set(gallery.names)) == images.class_names
    model = plsc.load_inference_model("example_output/products/model")
    ((match,),) = gallery.search(model.embed(images[0].image), 1)
    assert match.name == images.class_names[0] and match.cosine == pytest.approx(1, abs=1e-5)


def test_finetune(products, example):
    lines = example("finetune", "--epochs", 1)
    half = CLASSES // 2
    assert lines[-2] == f"classes kept {half}, new {half}, gone {half}"
    frozen = "backbone.body.0.weight"
    assert np.array_equal(saved("finetune", frozen), saved("products", frozen))
    moved = "backbone.body.3.body.0.weight"
    assert not np.array_equal(saved("finetune", moved), saved("products", moved))
    # A kept class has its center under another number, near where it was.
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (saved("products"), saved("finetune"))]
    nearest = (unit[1][:half] @ unit[0].T).argmax(axis=1)
    assert nearest.tolist() == list(range(half, CLASSES))


def test_own_backbone(example):
    lines = example("own_backbone", "--epochs", 1)
    assert "SeparableNet: 162,336 parameters" in lines
    assert lines[-1].endswith("[1, 64]")
    assert saved("own_backbone", "backbone.stem.0.weight").shape == (32, 3, 3, 3)


def test_own_margin(example):
    lines = example("own_margin", "--epochs", 1)
    (few, largest), (many, least) = (re.findall(r"[\d.]+(?= images|$)", line) for line in lines[-3:-1])
    assert int(few) < int(many) and float(largest) == 0.4 > float(least)
    assert "RareClassMargin" in json.dumps(Checkpoint("example_output/own_margin").about)


def test_own_margin_is_that_of_its_formula():
    margin = runpy.run_path(str(EXAMPLES / "own_margin.py"))["RareClassMargin"](0.4)
    counts, labels = np.array([16, 1, 81, 0]), [2, 0, 1, 3, 2]
    margin.set_class_counts(counts, range(4))
    cosines = np.linspace(-0.9, 0.9, len(labels))
    psi, by_cosine = margin(paddle.to_tensor(cosines), paddle.ones([5]), paddle.to_tensor(labels))
    for value, cosine, label in zip(psi.tolist(), cosines, labels):
        assert value == pytest.approx(cosine - 0.4 * max(int(counts[label]), 1) ** -0.25, abs=1e-7)
    assert by_cosine.tolist() == [1.0] * 5


def test_own_data(example, monkeypatch):
    lines = example("own_data", "--epochs", 1)
    images, folders = plsc.open_records("example_data/products.sqlite"), plsc.open_records("example_data/products")
    assert lines[-2] == "example_data/products.sqlite, row 1: product_000"
    assert images.class_names == folders.class_names and np.array_equal(images.labels, folders.labels)
    assert all(images[index].image == folders[index].image for index in range(len(folders)))
    with ThreadPoolExecutor(2) as pool:  # as plsc data convert reads
        assert list(pool.map(lambda index: images[index].image, range(4))) == [
            images[index].image for index in range(4)
        ]
    monkeypatch.syspath_prepend(EXAMPLES)  # pickle finds a class by its module
    by_module = importlib.import_module("own_data").SqliteRecords(images.path)
    assert pickle.loads(pickle.dumps(by_module))[0].image == images[0].image


@pytest.fixture
def messages():
    """(URL, what was posted to it)."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", received
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.server
def test_own_logger(example, messages):
    url, received = messages
    lines = example("own_logger", "--epochs", 1, "--url", url)
    assert [message["event"] for message in received] == ["start", "verify", "end"]
    assert received[1]["val/top1"] == received[2]["val/top1"] and received[2]["error"] is None
    assert lines[-1] == "3 messages sent"


def test_a_message_that_cannot_be_sent_stops_nothing(capsys):
    webhook = runpy.run_path(str(EXAMPLES / "own_logger.py"))["Webhook"]("http://127.0.0.1:9/hook")
    webhook.tell(event="verify", loss=float("nan"), lr=0.1)
    assert webhook.sent == 0
    assert 'not sent: {"event": "verify", "lr": 0.1}' in capsys.readouterr().out


def test_own_parts_are_found_by_their_names(example, monkeypatch, capsys):
    """As by `plsc train --model-name own_backbone:SeparableNet --loggers own_logger:Webhook`, which runs no script."""
    monkeypatch.syspath_prepend(EXAMPLES)
    entry = plsc.Entry()
    entry.set_dataset_dir("example_data/products")
    entry.set_model_name("own_backbone:SeparableNet")
    entry.set_loggers(["own_logger:Webhook"])
    entry.set_image_shape((3, 32, 32))
    entry.set_emb_size(16)
    entry.set_train_batch_size(16)
    entry.set_num_workers(0)
    entry.set_train_steps(1)
    entry.set_with_test(False)
    entry.set_model_save_dir("example_output/by_name")
    entry.train()
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert events == ["start", "end"]


@pytest.mark.ranks
@pytest.mark.slow
def test_faces_on_two_ranks(workspace):
    """As the example's own text says: several ranks run the same file."""
    arguments = ["--epochs", 1, "--batch-size", 8]
    _, output = launch(2, EXAMPLES / "faces.py", *arguments, log_dir=workspace / "log", cwd=workspace)
    table = dict(re.findall(r"^(coarse|unseen) +40 +(0\.\d+) ", output, re.MULTILINE))
    assert set(table) == {"coarse", "unseen"} and all(0 < float(accuracy) <= 1 for accuracy in table.values())
    shown = [line for line in output.splitlines() if line.startswith("unseen ")][-1]
    assert shape_of(shown).split() == shape_of(rows()["faces.py"][1]).split()
    assert "global batch 16 (8 on each rank), ranks 2" in output


# The notebook


def notebook():
    return json.loads((EXAMPLES / "first_run.ipynb").read_text())


def code_of(book):
    return "\n\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")


def test_the_notebook_is_valid_and_holds_no_output():
    book = notebook()
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5) and set(book) == {
        *("cells", "metadata", "nbformat", "nbformat_minor"),
    }
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    for cell in book["cells"]:
        of_code = {"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}
        assert {name: cell[name] for name in of_code} == of_code
        assert set(cell) == {"cell_type", "id", "metadata", "source", *of_code} and cell["metadata"] == {}
        assert all(isinstance(line, str) for line in cell["source"])
    for target in re.findall(r"\]\((?!http)([\w./-]+)\)", json.dumps(book)):
        assert (EXAMPLES / target).exists(), target
    assert not re.search(r"^\s*[!%]", code_of(book), re.MULTILINE)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="the notebook makes a gallery, which needs faiss")
    code, size = code_of(notebook()), "CLASSES, IMAGES, EPOCHS = 60, 12, 4"
    assert size in code
    (tmp_path / "cells.py").write_text(code.replace(size, "CLASSES, IMAGES, EPOCHS = 40, 6, 1"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    _, output = run([sys.executable, "cells.py"], cwd=tmp_path)
    assert re.search(r"^images +240$", output, re.MULTILINE)
    assert 0 < float(re.search(r"pairs judged right: ([\d.]+)", output)[1]) <= 1
    assert re.search(r"cosine within a class -?[\d.]+, between classes -?[\d.]+", output)
    right, asked, folder = re.search(
        r"(\d+) of (\d+) images found their class; everything is in (\S+)", output
    ).groups()
    assert int(right) <= int(asked) == 10
    assert shape_of(rows()["first_run.ipynb"][1]).startswith("# of # images found their class; everything is in ")
    assert {"data", "gallery", "images", "model", "output"} == set(os.listdir(folder))

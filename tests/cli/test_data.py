"""`plsc data` from end to end: each command on a small set, and what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest
import typer

from plsc.cli.data import app
from plsc.data.convert.conversion import convert_split
from plsc.data.sources import open_records
from plsc.data.verification_set import VerificationSet
from plsc.errors import DataError
from tests._support import sources


@pytest.fixture
def source(tmp_path):
    """60 images of 12 classes in class folders; the pixel says which image."""
    for index in range(60):
        folder = tmp_path / "set" / f"person{index % 12:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), np.full((6, 5, 3), index, np.uint8))
    return tmp_path / "set"


def run(*arguments):
    result = sources.run(*arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def pixels_of(path) -> list:
    records = open_records(path)
    return [shown(records[n].image) for n in range(len(records))]


def shown(image: bytes) -> int:
    return int(cv2.imdecode(np.frombuffer(image, np.uint8), 0)[0, 0])


def test_inspect_tells_counts_and_damage_by_its_status(source, tmp_path):
    result = run("inspect", source)
    assert result.exit_code == 0
    assert "classes           12" in result.stdout
    (source / "person03" / "3.png").write_bytes(b"broken")
    result = run("inspect", source, "--json", "--plot", tmp_path / "plot")
    assert result.exit_code == 1
    found, _ = json.JSONDecoder().raw_decode(result.stdout)  # older click mixes standard error in
    assert (found["images"], found["num_damaged"], found["looked_at"]) == (60, 1, 60)
    assert "person03/3.png" in found["damaged"][0]
    assert (tmp_path / "plot-images.png").exists()


def test_inspect_reads_what_is_left_of_a_damaged_rec(source, tmp_path):
    run("convert", source, tmp_path / "rec")
    path = tmp_path / "rec" / "train.rec"
    path.write_bytes(path.read_bytes()[:2000])
    result = run("inspect", tmp_path / "rec")
    assert result.exit_code == 1
    assert "DAMAGED  " in result.stdout
    with pytest.raises(DataError, match="recover=True|walked instead"):
        run("convert", tmp_path / "rec", tmp_path / "tar", "--to", "tar")
    run("convert", tmp_path / "rec", tmp_path / "tar", "--to", "tar", "--recover")
    assert 0 < len(open_records(tmp_path / "tar")) < 60


def test_convert_there_and_back_keeps_all(source, tmp_path):
    assert "60 images" in run("convert", source, tmp_path / "tar", "--to", "tar", "--parts", 4).stdout
    assert len(list((tmp_path / "tar").glob("*.tar"))) == 4
    assert len(run("index", tmp_path / "tar").stdout.splitlines()) == 4
    run("convert", tmp_path / "tar", tmp_path / "back", "--to", "folders", "--size", 8, "--encoding", "png")
    assert sorted(pixels_of(tmp_path / "back")) == list(range(60))
    with pytest.raises(DataError, match="class folders, which needs no index"):
        run("index", source)


def test_shuffle_is_a_permutation_drawn_from_the_seed(source, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("shuffle", source, tmp_path / name, "--to", "base64", "--seed", seed, "--parts", 3)
    a, b, c = (pixels_of(tmp_path / name) for name in "abc")
    assert a == b != c
    assert sorted(a) == list(range(60)) != a
    assert len((tmp_path / "a" / "file_list.txt").read_text().split()) == 3


def test_split_then_pairs_of_identities_that_training_never_saw(source, tmp_path):
    out = run("split", source, tmp_path / "parts", "--held-out", 0.5, "--to", "list").stdout
    assert "parts/train: 30 images" in out
    assert "parts/held_out: 30 images" in out
    train, held_out = (pixels_of(tmp_path / "parts" / name) for name in ("train", "held_out"))
    assert sorted(train + held_out) == list(range(60))
    assert not {index % 12 for index in train} & {index % 12 for index in held_out}
    out = run("pairs", tmp_path / "parts" / "held_out", tmp_path / "new.bin", "--pairs", 24, "--folds", 2).stdout
    assert "24 pairs in 2 folds of 30 images, 6 classes" in out
    made = VerificationSet.load(tmp_path / "new.bin")
    assert made.is_same.sum() == 12
    assert made.has_own_folds and made.folds.tolist() == [0] * 12 + [1] * 12
    assert set(map(shown, made.images)) <= set(held_out)
    with pytest.raises(DataError, match="new.bin exists already"):
        run("pairs", source, tmp_path / "new.bin")


@pytest.mark.parametrize(
    "pairs, folds, words",
    [
        (2, 1, "bin: no accuracy: the folds other than fold 0 hold different pairs only"),
        (8, 1, "bin: too few for a sound accuracy: 8 pairs, 4 of one kind"),
        (4, 2, "bin: too few for a sound accuracy: 4 pairs, 2 of one kind"),
        (40, 1, ""),
    ],
)
def test_pairs_that_are_too_few_for_an_accuracy_are_said(source, tmp_path, pairs, folds, words):
    output = run("pairs", source, tmp_path / "new.bin", "--pairs", pairs, "--folds", folds).output
    assert words in output and ("too few for a sound" in output or "no accuracy" in output) == bool(words)


def test_pairs_can_leave_out_the_identities_of_a_training_set(source, tmp_path):
    training = tmp_path / "training"
    for number in range(6):
        (training / f"person{number:02d}").mkdir(parents=True)
        (training / f"person{number:02d}" / "x.png").write_bytes(b"x")
    run("pairs", source, tmp_path / "new.bin", "--pairs", 12, "--folds", 1, "--exclude", training)
    made = VerificationSet.load(tmp_path / "new.bin")
    assert not made.has_own_folds  # evaluation needs two or more, and makes them
    assert {shown(image) % 12 for image in made.images} <= set(range(6, 12))


@pytest.mark.parametrize("to", ["rec", "tar", "base64", "list", "folders"])
def test_the_identities_of_a_part_are_left_out_of_the_whole_whatever_their_new_numbers(source, tmp_path, to):
    run("convert", source, tmp_path / "unnamed")
    (tmp_path / "unnamed" / "classes.txt").unlink()
    for number, whole in enumerate((source, tmp_path / "unnamed")):
        run("split", whole, tmp_path / f"parts{number}", "--held-out", 4, "--to", to)
        train, held_out = (
            set(np.array(pixels_of(tmp_path / f"parts{number}" / name)) % 12) for name in ("train", "held_out")
        )
        run(
            "pairs",
            whole,
            tmp_path / f"{number}.bin",
            "--pairs",
            8,
            "--folds",
            1,
            "--exclude",
            tmp_path / f"parts{number}" / "train",
        )
        paired = {shown(image) % 12 for image in VerificationSet.load(tmp_path / f"{number}.bin").images}
        assert paired <= held_out
        assert not paired & train


def test_an_interrupted_split_goes_on(source, tmp_path, monkeypatch):
    records = open_records(source)
    inner = type(records).__getitem__
    reads = []

    def read(self, index):
        reads.append(index)
        if len(reads) == 45:
            raise KeyboardInterrupt
        return inner(self, index)

    monkeypatch.setattr(type(records), "__getitem__", read)
    with pytest.raises(KeyboardInterrupt):
        convert_split(records, tmp_path / "parts", to="rec", held_out=0.5)
    assert not (tmp_path / "parts").exists()
    reads[:] = [None] * 45
    assert [done.images for done in convert_split(records, tmp_path / "parts", to="rec", held_out=0.5)] == [30, 30]
    assert len(reads) - 45 == 30
    train, held_out = (pixels_of(tmp_path / "parts" / name) for name in ("train", "held_out"))
    assert sorted(train + held_out) == list(range(60))
    with pytest.raises(DataError, match="parts exists already"):
        convert_split(records, tmp_path / "parts", to="rec", held_out=0.5)


def test_landmarks_align_in_convert(source, tmp_path):
    np.save(tmp_path / "marks.npy", np.tile(np.array([[1, 2], [4, 2], [2.5, 3], [1, 5], [4, 5]]), (60, 1, 1)))
    run("convert", source, tmp_path / "new", "--landmarks", tmp_path / "marks.npy", "--size", 56)
    records = open_records(tmp_path / "new")
    assert cv2.imdecode(np.frombuffer(records[0].image, np.uint8), 1).shape == (56, 56, 3)
    with pytest.raises(DataError, match="align first"):
        run("convert", source, tmp_path / "b", "--landmarks", tmp_path / "marks.npy", "--min-images", 2)


def test_what_has_no_effect_is_refused(tmp_path):
    source = sources.make_list(tmp_path / "set")
    for arguments, message in (
        (("convert", source, tmp_path / "out", "--quality", "60"), "--quality needs"),
        (
            ("convert", source, tmp_path / "out", "--quality", "60", "--size", "9", "--encoding", "png"),
            "--quality needs",
        ),
        (("shuffle", source, tmp_path / "out", "--to", "folders"), "have no order"),
        (("pairs", source, tmp_path / "lfw"), "ends in .bin"),
        (("pairs", source, tmp_path / "no" / "lfw.bin"), "existing folder"),
    ):
        result = sources.run(*arguments)
        assert isinstance(result.exception, DataError) and message in str(result.exception)


@pytest.mark.parametrize("command", [("shuffle",), ("split", "--held-out", "1")])
def test_bad_images_can_be_left_out_wherever_it_is_advised(tmp_path, command):
    source = sources.make_list(tmp_path / "set")
    (source / "images" / "0.png").write_bytes(b"no image")
    stopped = sources.run(command[0], source, tmp_path / "out", *command[1:])
    assert "--skip-bad-images" in str(stopped.exception)
    assert sources.run(command[0], source, tmp_path / "out", *command[1:], "--skip-bad-images").exit_code == 0


def test_every_help_text_stands_alone():
    commands = typer.main.get_command(app).commands
    texts = [app.info.help, *(command.help for command in commands.values())]
    texts += [option.help for command in commands.values() for option in command.params if option.name != "help"]
    assert len(texts) > 40
    for text in texts:
        assert re.match(r"[A-Z].*\.$", text, re.DOTALL), text
        assert not re.match(r"(?i)(which|what|how|these|those|it|they|as|the same|of)\b", text), text


def test_commands_need_no_standard_error_and_print_no_log_elsewhere(tmp_path):
    source = sources.make_list(tmp_path / "set")
    program = "import sys; from plsc.cli.main import main; sys.argv[1:1] = ['data']; main()"

    def call(*arguments, closing):
        command = shlex.join([sys.executable, "-c", program, *map(str, arguments)])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(["sh", "-c", f"exec {command} {closing}"], stdout=subprocess.PIPE, env=environment)

    done = call("inspect", source, "--json", closing="2>&-")
    assert done.returncode == 0 and json.loads(done.stdout)["images"] == 6
    done = call("convert", source, tmp_path / "new", "--to", "csv", closing="<&- 2>&-")
    assert done.returncode == 0 and done.stdout.decode().endswith("new: 6 images\n")
    done = call("inspect", tmp_path / "none", closing="2>&-")
    assert done.returncode == 1 and done.stdout == b""
    assert call("inspect", source, closing="2>/dev/full").returncode == 0

"""Where an export goes: what stood there before is replaced whole, but for what is the user's."""

from __future__ import annotations

import os

import pytest
from servers import make_model

from plsc import ExportError
from plsc.errors import PLSCError
from plsc.utils.replacing import replacing


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_exporting_again_leaves_the_user_what_is_theirs(tmp_path, caplog):
    folder = tmp_path / "m"
    make_model(folder, formats=("serving", "legacy"))
    fresh = files(folder)
    serving = folder / "serving"
    (folder / "NOTES").write_text("mine")
    (serving / "venv" / "bin").mkdir(parents=True)
    (serving / "venv" / "bin" / "python").write_text("mine")
    (serving / "config.yml").write_text("worker_num: 3\n")
    (serving / "Dockerfile").write_text("FROM mine\n")
    make_model(folder, formats=("serving",))
    kept = ["NOTES", "serving/Dockerfile.old", "serving/venv/bin/python"]
    assert files(folder) == sorted([name for name in fresh if not name.startswith("legacy")] + kept)
    assert (serving / "config.yml").read_text() == "worker_num: 3\n"
    assert (serving / "Dockerfile.old").read_text() == "FROM mine\n" != (serving / "Dockerfile").read_text()
    assert "serving/Dockerfile: it had been edited, and stays so as Dockerfile.old" in caplog.text
    make_model(folder)
    assert files(folder / "serving") == ["Dockerfile.old", "config.yml", "venv/bin/python"]
    assert os.listdir(tmp_path) == ["m"]


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for path, message in ((tmp_path / "file", "is a file, expected a folder"), (tmp_path / "file" / "m", "Not a dir"),
                          ("/proc/m", "cannot be written"), (".", "is the current folder and cannot be replaced")):
        with pytest.raises(ExportError, match=message):
            make_model(path)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link", PLSCError) as partial:
        (partial / "new").write_text("")
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "real") == ["new"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_what_was_interrupted_while_it_was_put_in_place_is_put_right(tmp_path, monkeypatch, renames):
    folder, real = tmp_path / "f", os.rename
    folder.mkdir()
    (folder / "mine").write_text("old")
    left = renames

    def rename(source, target):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        real(source, target)

    def carry_over(old, new):
        rename(old / "mine", new / "mine")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", rename)
        with pytest.raises(KeyboardInterrupt), replacing(folder, PLSCError, carry_over):
            pass
    with replacing(folder, PLSCError, lambda old, new: (old / "mine").rename(new / "mine")):
        pass
    assert (folder / "mine").read_text() == "old" and os.listdir(tmp_path) == ["f"]

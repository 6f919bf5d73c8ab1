"""An export replaces the files of an earlier export and keeps those that the user added or edited."""

from __future__ import annotations

import os

import pytest

from plsc import ExportError
from tests._support.servers import make_model


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_exporting_again_keeps_files_that_the_user_added_or_edited(tmp_path, caplog):
    folder = tmp_path / "m"
    make_model(folder, formats=("serving", "legacy"))
    fresh = files(folder)
    serving = folder / "serving"
    (folder / "NOTES").write_text("mine")
    (folder / "legacy" / "engine.trt").write_text("mine")
    (serving / "venv" / "bin").mkdir(parents=True)
    (serving / "venv" / "bin" / "python").symlink_to("/no/such/python")
    (serving / "config.yml").write_text("worker_num: 3\n")
    (serving / "start.sh").unlink()
    (serving / "start.sh").mkdir()
    (serving / "start.sh" / "inside").write_text("mine")
    for edit, backup in (("FROM mine\n", "Dockerfile.old"), ("FROM other\n", "Dockerfile.old.1")):
        (serving / "Dockerfile").write_text(edit)
        caplog.clear()
        make_model(folder, formats=("serving",))
        assert (serving / backup).read_text() == edit != (serving / "Dockerfile").read_text()
        assert f"serving/Dockerfile: it had been changed, and stays so as {backup}" in caplog.text
    assert (serving / "config.yml").read_text() == "worker_num: 3\n"
    assert (serving / "venv" / "bin" / "python").is_symlink()
    kept = [
        "NOTES",
        "legacy/engine.trt",
        "serving/Dockerfile.old",
        "serving/Dockerfile.old.1",
        "serving/start.sh.old/inside",
    ]
    assert files(folder) == sorted([name for name in fresh if not name.startswith("legacy")] + kept)
    make_model(folder)
    left = ["Dockerfile.old", "Dockerfile.old.1", "config.yml", "start.sh.old/inside"]
    assert files(folder / "serving") == left and os.listdir(tmp_path) == ["m"]
    make_model(folder, formats=("serving",))
    assert (serving / "config.yml").read_text() == "worker_num: 3\n" and (serving / "serving_server").is_dir()


def test_a_service_folder_that_is_a_link_is_not_written_through(tmp_path):
    make_model(tmp_path / "m", formats=("serving",))
    (tmp_path / "m" / "serving").rename(tmp_path / "elsewhere")
    (tmp_path / "m" / "serving").symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path / "elsewhere")
    make_model(tmp_path / "m", formats=("serving",))
    assert files(tmp_path / "elsewhere") == before and (tmp_path / "m" / "serving.old").is_symlink()


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path / "empty")
    for path, message in (
        (tmp_path / "file", "is a file, expected a folder"),
        (tmp_path / "file" / "m", "Not a dir"),
        ("/proc/m", "cannot be written"),
        (".", "is the current folder or a mount point"),
        (tmp_path / "loop", "loop"),
    ):
        with pytest.raises(ExportError, match=message):
            make_model(path)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "loop"]

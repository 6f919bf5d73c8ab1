"""The resumable output folder: nothing is overwritten, one process at a time, and the note says where to continue."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plsc.data.convert.conversion import convert
from plsc.data.convert.resumable import Progress, resumable_folder
from plsc.data.sources import open_records
from plsc.errors import DataError
from tests._support.conversion import Images
from tests._support.sources import make_list


def test_nothing_is_overwritten_and_no_two_write_at_once(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="there exists already; nothing is overwritten"):
        convert(Images(), tmp_path / "there", to="rec")
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="new.partial is not empty and holds no conversion"):
        convert(Images(), tmp_path / "new", to="rec")
    assert (tmp_path / "new.partial" / "mine.txt").read_text() == "x"
    (tmp_path / "busy.partial").mkdir()
    with open(tmp_path / "busy.partial" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is converting there now"):
            convert(Images(), tmp_path / "busy", to="rec")
    (tmp_path / "odd.partial").mkdir()
    (tmp_path / "odd.partial" / ".progress.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="progress.json cannot be read"):
        convert(Images(), tmp_path / "odd", to="rec")


def test_a_target_that_comes_into_being_meanwhile_leaves_the_work_to_go_on(tmp_path, monkeypatch):
    records, target = open_records(make_list(tmp_path / "set")), tmp_path / "out"
    real = type(records).__getitem__

    def read(self, index):
        target.mkdir(exist_ok=True)
        return real(self, index)

    monkeypatch.setattr(type(records), "__getitem__", read)
    with pytest.raises(DataError, match="was made by another program meanwhile"):
        convert(records, target, to="rec")
    monkeypatch.undo()
    target.rmdir()
    assert convert(records, target, to="rec").images == 6


def test_a_note_tells_where_to_continue(tmp_path):
    target, job = tmp_path / "out", {"images": 9, "to": "x"}
    full = pytest.raises(
        DataError, match="cannot be written: No space left on device; run the same command again to continue"
    )
    with full, resumable_folder(target, job) as output:
        (output.path / "a").write_text("a")
        output.progress.index = output.progress.written = 4
        output.note([3, 17])
        raise OSError(28, "No space left on device")
    (tmp_path / "out.partial" / f"..progress.json.{os.getpid()}.partial").write_text("of a process that was killed")
    other = pytest.raises(DataError, match="another conversion was begun there .it differs in images, to.")
    with other, resumable_folder(target, {"images": 8, "to": "y"}):
        pass
    with resumable_folder(target, job) as output:
        assert output.progress == Progress(index=4, written=4, skipped=0, position=[3, 17])
        output.finish()
    assert [path.name for path in target.iterdir()] == ["a"] and not output.path.exists()


def test_work_before_the_first_note_is_removed_but_for_what_continues_by_itself(tmp_path):
    for run in range(2):
        with resumable_folder(tmp_path / "out", {"images": 9}, keep=["part"]) as output:
            assert output.progress == Progress()
            assert [path.name for path in output.path.iterdir() if path.name[0] != "."] == ["part"][:run]
            (output.path / "part").mkdir(exist_ok=True)
            (output.path / "half").write_text("half")


def test_a_killed_process_leaves_the_note_before(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from plsc.data.convert.resumable import resumable_folder
with resumable_folder(Path({str(tmp_path / "out")!r}), {{"images": 9}}) as output:
    for index in (1, 2):
        output.progress.index = index
        output.note(index)
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    output.progress.index = 3
    output.note(3)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3]).returncode == -signal.SIGKILL
    with resumable_folder(tmp_path / "out", {"images": 9}) as output:
        assert (output.progress.index, output.progress.position) == (2, 2)
        output.finish()
    assert list((tmp_path / "out").iterdir()) == []

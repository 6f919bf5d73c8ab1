"""Files and folders that are written complete or not at all, also when the process is killed or the disk is full."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plsc.errors import PLSCError
from plsc.utils.atomic import lock_folder, rename_folder, restore_folder, write_file, write_folder
from tests._support.killing import kill_at_each_step

ROOT = Path(__file__).parents[2]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(folder):
    return {name: (folder / name).read_text() for name in files(folder)}


def write(folder, **texts):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def disk(monkeypatch):
    """Names as they are flushed to the disk, '>' before those that are renamed."""
    events = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def record_sync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record_sync)
    for name, real in (("rename", rename), ("replace", replace)):
        monkeypatch.setattr(
            Path, name, lambda self, target, real=real: events.append(f">{Path(target).name}") or real(self, target)
        )
    return events


def run_until_killed(script):
    """Run a script that kills itself before the change of name number `kill`, which it counts down."""
    head = """
import os, signal
from pathlib import Path
from plsc.errors import PLSCError
from plsc.utils.atomic import write_file, write_folder
def counted(real):
    def rename(self, target):
        global kill
        kill -= 1
        if not kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)
    return rename
Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
"""
    done = subprocess.run([sys.executable, "-c", head + script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


# Files


def test_a_file_is_replaced_whole_and_flushed_with_its_folder(tmp_path, disk):
    write(tmp_path, a="old")
    with write_file(tmp_path / "a") as file:
        file.write(b"new")
        assert (tmp_path / "a").read_text() == "old"
    assert contents(tmp_path) == {"a": "new"}
    assert disk == [f".a.{os.getpid()}.partial", ">a", tmp_path.name]


def test_a_file_that_cannot_be_completed_leaves_the_old_one(tmp_path, monkeypatch):
    write(tmp_path, a="old")
    with pytest.raises(ZeroDivisionError), write_file(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"a": "old"}

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"), write_file(tmp_path / "a") as file:
        file.write(b"half")
    assert contents(tmp_path) == {"a": "old"}
    with pytest.raises(FileNotFoundError), write_file(tmp_path / "none" / "a"):
        pass


def test_a_file_is_the_old_one_when_the_process_is_killed_before_the_change_of_name(tmp_path):
    write(tmp_path, a="old")
    run_until_killed(f"kill = 1\nwith write_file(Path({str(tmp_path / 'a')!r})) as file:\n    file.write(b'new')")
    assert (tmp_path / "a").read_text() == "old"
    with write_file(tmp_path / "a") as file:
        file.write(b"newer")
    assert (tmp_path / "a").read_text() == "newer"


# Folders


def test_a_new_folder_is_flushed_before_its_name_and_its_name_after(tmp_path, disk):
    with write_folder(tmp_path / "f", PLSCError) as new:
        write(new.path, **{"a": "1", "deep/b": "2"})
    assert contents(tmp_path / "f") == {"a": "1", "deep/b": "2"}
    at = disk.index(">f")
    assert sorted(disk[:at]) == sorted([".f.plsc-partial", "a", "deep", "b"])
    assert disk[at + 1 :] == [tmp_path.name]


def test_files_of_the_earlier_folder_follow_the_table(tmp_path, caplog):
    folder = tmp_path / "f"
    write(folder, **{"both": "old", "gone": "old", "lone": "old", "kept": "old", "edited": "old", "deep/lone": "old"})
    with write_folder(folder, PLSCError) as new:
        write(new.path, **{"both": "new", "kept": "new", "edited": "new", "fresh": "new"})
        new.obsolete, new.keep = {"both", "gone"}, ("kept", "lone")
    assert contents(folder) == {
        "both": "new",
        "lone": "old",
        "kept": "old",
        "edited": "new",
        "edited.old": "old",
        "fresh": "new",
        "deep/lone": "old",
    }
    assert "edited: it had been changed, and stays so as edited.old" in caplog.text
    assert os.listdir(tmp_path) == ["f"]


def test_obsolete_wins_over_keep(tmp_path):
    write(tmp_path / "f", a="old")
    with write_folder(tmp_path / "f", PLSCError) as new:
        write(new.path, a="new")
        new.obsolete, new.keep = {"a"}, ("a",)
    assert contents(tmp_path / "f") == {"a": "new"}


def test_an_exception_leaves_the_earlier_folder_as_it_was(tmp_path):
    write(tmp_path / "f", a="old")
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "f", PLSCError) as new:
        write(new.path, a="new")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"f/a": "old"} and os.listdir(tmp_path) == ["f"]


def test_a_folder_that_must_be_new_is_never_put_over_another(tmp_path):
    not_empty = pytest.raises(PLSCError, match="f: cannot be written: Directory not empty")
    with not_empty, write_folder(tmp_path / "f", PLSCError, replace=False) as new:
        write(new.path, a="mine")
        write(tmp_path / "f", a="another's")
    assert contents(tmp_path) == {"f/a": "another's"} and os.listdir(tmp_path) == ["f"]
    write(tmp_path / "g", a="mine")
    with pytest.raises(OSError, match="Directory not empty"):
        rename_folder(tmp_path / "g", tmp_path / "f")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with write_folder(tmp_path / "link", PLSCError) as new:
        (new.path / "new").write_text("")
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "real") == ["new"]


def test_two_at_a_time_do_not_mix(tmp_path):
    with write_folder(tmp_path / "f", PLSCError) as new:
        (new.path / "new").write_text("")
        with pytest.raises(PLSCError, match="another process is writing it"), write_folder(tmp_path / "f", PLSCError):
            pass
    assert files(tmp_path / "f") == ["new"] and os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_an_interruption_while_it_is_put_in_place_loses_nothing(tmp_path, kill):
    """The process is killed before its first, second, third change of name; the next replacement goes well."""
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "mine").write_text("precious")
    run_until_killed(f"""
kill = {kill}
with write_folder(Path({str(folder)!r}), PLSCError) as new:
    (new.path / "new").write_text("")
""")
    with write_folder(folder, PLSCError) as new:
        (new.path / "newer").write_text("")
    found = [path for path in tmp_path.rglob("mine") if path.read_text() == "precious"]
    assert len(found) == 1 and not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert (folder / "newer").is_file()


def test_a_reader_puts_back_what_an_interruption_left(tmp_path, caplog):
    folder = tmp_path / "f"
    assert not restore_folder(folder) and not restore_folder(tmp_path / "none" / "f")
    write(folder, a="old")
    assert not restore_folder(folder) and not caplog.text
    run_until_killed(f"""
kill = 2
with write_folder(Path({str(folder)!r}), PLSCError) as new:
    (new.path / "a").write_text("new")
""")
    assert not folder.exists()
    assert restore_folder(folder) and contents(folder) == {"a": "old"}


def test_an_interruption_before_a_new_folder_gets_its_name_leaves_none(tmp_path):
    script = f"""
kill = 1
with write_folder(Path({str(tmp_path / "f")!r}), PLSCError) as new:
    (new.path / "new").write_text("")
"""
    run_until_killed(script)
    assert not (tmp_path / "f").exists()
    with write_folder(tmp_path / "f", PLSCError) as new:
        (new.path / "newer").write_text("")
    assert files(tmp_path) == ["f/newer"]


def test_a_failure_while_it_is_put_in_place_leaves_the_earlier_one(tmp_path, monkeypatch):
    folder, real = tmp_path / "f", Path.rename
    folder.mkdir()
    (folder / "mine").write_text("precious")

    def rename(self, target):
        if self.name.endswith("partial"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PLSCError, match="cannot be written: Input/output error"), write_folder(folder, PLSCError):
        pass
    assert files(folder) == ["mine"] and os.listdir(tmp_path) == ["f"]


def test_files_that_cannot_be_carried_over_stay_in_a_folder_beside(tmp_path, monkeypatch, caplog):
    folder, real = tmp_path / "f", Path.rename
    write(folder, mine="precious")

    def rename(self, target):
        if self.name == "mine":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with write_folder(folder, PLSCError) as new:
        write(new.path, new="new")
    assert contents(tmp_path) == {"f/new": "new", "f.old/mine": "precious"}
    assert "not all of the earlier one could be carried over" in caplog.text
    shutil.rmtree(tmp_path / "f.old")


def replace_pair(root):
    """Replace root/f, whose files a and b belong together."""
    with write_folder(root / "f", PLSCError) as new:
        write(new.path, a="new", b="new", **{"sub/c": "new"})
        new.obsolete = {"a", "b", "sub/c"}


def test_a_kill_at_any_step_leaves_the_earlier_folder_or_the_new_one(tmp_path, caplog):
    ours = {"a": "old", "b": "old", "sub/c": "old"}
    states = kill_at_each_step(
        lambda root: write(root / "f", **ours, **{"mine": "precious", "sub/mine": "precious"}), replace_pair, tmp_path
    )
    found = []
    for state in states:
        if not (state / "f").exists():
            assert restore_folder(state / "f")
        here = contents(state / "f")
        found.append({here[name] for name in ours})
        assert found[-1] in ({"old"}, {"new"})
        assert list(contents(state).values()).count("precious") == 2
        replace_pair(state)
        after = contents(state)
        assert list(after.values()).count("precious") == 2 and after["f/a"] == after["f/b"] == "new"
        assert not [name for name in os.listdir(state) if name.startswith(".")]
    assert found[0] == {"old"} and found[-1] == {"new"}


def test_a_kill_at_any_step_leaves_no_folder_or_a_whole_new_one(tmp_path):
    for state in kill_at_each_step(lambda root: None, replace_pair, tmp_path):
        assert not restore_folder(state / "f")
        assert not (state / "f").exists() or set(contents(state / "f").values()) == {"new"}
        replace_pair(state)
        assert os.listdir(state) == ["f"] and contents(state / "f") == {"a": "new", "b": "new", "sub/c": "new"}


def test_a_kill_at_any_step_leaves_the_earlier_file_or_the_new_one(tmp_path):
    def replace(root):
        with write_file(root / "a") as file:
            file.write(b"new")

    for state in kill_at_each_step(lambda root: write(root, a="old"), replace, tmp_path):
        assert (state / "a").read_text() in ("old", "new")


def test_what_is_left_of_a_finished_replacement_is_never_put_back(tmp_path):
    states = kill_at_each_step(lambda root: write(root / "f", a="old", mine="old"), replace_pair, tmp_path)
    finished = [state for state in states if (state / ".f.plsc-rest").exists()]
    assert finished
    for state in finished:
        shutil.rmtree(state / "f")  # by the user
        assert not restore_folder(state / "f") and not (state / "f").exists()
        replace_pair(state)
        assert contents(state / "f") == {"a": "new", "b": "new", "sub/c": "new"}


# Locks


def test_a_lock_is_waited_for_and_follows_the_name(tmp_path, caplog):
    folder = tmp_path / "f"
    folder.mkdir()
    order, began = [], threading.Event()

    def other():
        began.set()
        with lock_folder(folder, PLSCError):
            order.append("other")

    with lock_folder(folder, PLSCError):
        with pytest.raises(PLSCError, match="f: this thread is changing it already"), lock_folder(folder, PLSCError):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        began.wait()
        thread.join(0.2)
        assert thread.is_alive()
        folder.rename(tmp_path / "moved")
        folder.mkdir()
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"] and "another process or thread is changing it; waiting" in caplog.text
    with pytest.raises(FileNotFoundError), lock_folder(tmp_path / "none", PLSCError):
        pass


def test_a_process_forked_under_a_lock_neither_keeps_it_nor_frees_it(tmp_path):
    read, end = os.pipe()
    with lock_folder(tmp_path, PLSCError):
        child = os.fork()
        if not child:
            os.close(end)
            os.read(read, 1)  # alive, with the lock's handle, until the parent closes its end
            os._exit(0)
        assert subprocess.run(["flock", "-n", tmp_path, "true"]).returncode == 1
    assert subprocess.run(["flock", "-n", tmp_path, "true"]).returncode == 0
    os.close(end)
    os.waitpid(child, 0)
    os.close(read)
    lock = contextlib.ExitStack()
    lock.enter_context(lock_folder(tmp_path, PLSCError))
    child = os.fork()
    if not child:
        lock.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert subprocess.run(["flock", "-n", tmp_path, "true"]).returncode == 1
    lock.close()

"""One run at a time saves into a folder; a run that has ended, however it has, holds up nobody."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from plsc import CheckpointError
from plsc.distributed.collectives import Collectives
from plsc.engine import run_lock
from plsc.engine.run_lock import LOCK_FILE, Owner, RunLock
from plsc.engine.trainer import Trainer
from tests._support.ranks import ThreadRanks

ALONE = Collectives()
FORK = multiprocessing.get_context("fork")


def hold(root, until, results=None):
    """Run in a process of its own: try to hold the lock, say whether that went well, and end it when told to."""
    lock = RunLock(root)
    try:
        lock.hold(ALONE)
    except CheckpointError as error:
        results.put(str(error))
        return
    results.put(os.getpid())
    until.wait(60)
    lock.release()


@pytest.fixture
def process():
    """Starts a process that holds the lock of a folder, and returns it with the event that ends it."""
    started = []

    def start(root):
        until, results = FORK.Event(), FORK.Queue()
        child = FORK.Process(target=hold, args=(root, until, results))
        child.start()
        started.append(child)
        assert results.get(timeout=30) == child.pid
        return child, until

    yield start
    for child in started:
        child.kill()
        child.join(30)


def test_a_second_process_is_told_who_holds_the_folder(process, tmp_path):
    child, until = process(tmp_path)
    owner = json.loads((tmp_path / LOCK_FILE).read_text())
    lock = RunLock(tmp_path)
    with pytest.raises(CheckpointError) as error:
        lock.hold(ALONE)
    found = str(error.value)
    assert f"{tmp_path}: another run saves into this folder: process {child.pid} on {owner['host']}, since" in found
    assert owner["started"] in found and "set_model_save_dir" in found
    assert not lock.is_held
    until.set()
    child.join(30)
    assert list(tmp_path.iterdir()) == []
    assert lock.hold(ALONE) and lock.is_held
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_loses_the_folder_at_once(process, tmp_path):
    child, _ = process(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    assert (tmp_path / LOCK_FILE).exists()
    lock = RunLock(tmp_path)
    assert lock.hold(ALONE)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    lock.release()


def test_a_killed_process_that_nobody_waited_for_loses_the_folder_too(tmp_path):
    """A zombie still has its number."""
    results, until = FORK.Queue(), FORK.Event()
    child = os.fork()
    if not child:
        hold(tmp_path, until, results)
        os._exit(0)
    assert results.get(timeout=30) == child
    os.kill(child, signal.SIGKILL)
    lock = RunLock(tmp_path)
    assert lock.hold(ALONE, wait=10)
    lock.release()
    os.waitpid(child, 0)


def test_a_reader_process_that_outlives_its_run_holds_nothing(tmp_path):
    pipe = os.pipe()
    child = os.fork()
    if not child:
        RunLock(tmp_path).hold(ALONE)
        reader = os.fork()
        if not reader:
            os.close(pipe[0])
            time.sleep(60)
            os._exit(0)
        os.write(pipe[1], str(reader).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    reader = int(os.read(pipe[0], 100))
    try:
        assert RunLock(tmp_path).hold(ALONE)
    finally:
        os.kill(reader, signal.SIGKILL)


def test_a_fork_gives_nothing_back(tmp_path):
    lock = RunLock(tmp_path)
    lock.hold(ALONE)
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK_FILE).exists() and lock.is_held
    lock.release()


def test_a_lock_that_was_lost_by_closing_a_copy_still_counts(process, tmp_path):
    """POSIX: a process loses its lock when it closes the file anywhere, as after reading it for a copy."""
    lock = RunLock(tmp_path)
    lock.hold(ALONE)
    lock.is_running = True
    shutil.copy(tmp_path / LOCK_FILE, tmp_path / "copy")
    script = f"from tests.engine.test_run_lock import *; RunLock({str(tmp_path)!r}).hold(ALONE)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert f"another run saves into this folder: process {os.getpid()} on " in done.stderr
    lock.release()


def test_many_processes_at_the_same_moment(tmp_path):
    """Of ten pairs and a crowd exactly one has the folder at a time."""
    for number, count in enumerate([2] * 10 + [6]):
        root, until, results = tmp_path / str(number) / "output", FORK.Event(), FORK.Queue()
        children = [FORK.Process(target=hold, args=(root, until, results)) for _ in range(count)]
        for child in children:
            child.start()
        found = [results.get(timeout=60) for _ in children]
        until.set()
        for child in children:
            child.join(30)
        assert [type(item) for item in found].count(int) == 1
        assert all("another run saves into this folder" in item for item in found if isinstance(item, str))


def test_who_waits_gets_the_folder_when_the_other_run_ends(process, tmp_path, caplog):
    _, until = process(tmp_path)
    timer = threading.Timer(1.0, until.set)
    timer.start()
    lock = RunLock(tmp_path)
    assert lock.hold(ALONE, wait=30)
    assert caplog.text.count("waiting for its end") == 1
    lock.release()


def test_who_waits_in_vain_is_told_who_holds_the_folder(process, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_ROUND_SECONDS", 0.3)
    child, _ = process(tmp_path)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=f"process {child.pid}"):
        RunLock(tmp_path).hold(ALONE, wait=1.0)
    assert time.monotonic() - began >= 1.0


def test_all_ranks_learn_that_rank_0_is_refused(process, tmp_path):
    child, until = process(tmp_path)
    ranks = ThreadRanks(2)
    locks = [RunLock(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for tried in [pool.submit(locks[rank].hold, ranks[rank]) for rank in range(2)]:
            with pytest.raises(CheckpointError, match=f"process {child.pid}"):
                tried.result(30)
        until.set()
        child.join(30)
        assert [done.result(30) for done in [pool.submit(locks[n].hold, ranks[n]) for n in range(2)]] == [True, True]
        assert [lock.is_held for lock in locks] == [True, False]
        assert [done.result(30) for done in [pool.submit(locks[n].hold, ranks[n]) for n in range(2)]] == [False, False]
    locks[0].release()


def test_a_trainer_that_was_not_used_holds_up_nobody_and_a_training_one_does(entry, tmp_path):
    first = Trainer(entry.config)
    second = Trainer(entry.config)
    assert second._lock.is_held and not first._lock.is_held

    def inside(step):
        with pytest.raises(CheckpointError, match="another run saves into this folder: another trainer of this proc"):
            Trainer(entry.config)

    second.observers.on_step = inside
    second.train()
    assert not (tmp_path / "output" / LOCK_FILE).exists()
    with pytest.raises(CheckpointError, match="output/0 is a checkpoint of later training"):
        first.train()  # it was made when the folder was empty
    assert not (tmp_path / "output" / LOCK_FILE).exists()


def test_a_trainer_that_cannot_be_made_gives_the_folder_back(entry, tmp_path):
    entry.set_dataset_dir(tmp_path / "none")
    with pytest.raises(Exception, match="none") as kept:
        Trainer(entry.config)
    assert not (tmp_path / "output" / LOCK_FILE).exists()
    assert kept.value is not None


def test_a_file_system_without_locks_is_warned_of_and_the_content_decides(process, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    child, until = process(tmp_path)  # forked, so without locks too
    with pytest.raises(CheckpointError, match=f"process {child.pid}"):
        RunLock(tmp_path).hold(ALONE)
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    lock = RunLock(tmp_path)
    assert lock.hold(ALONE)
    assert "its file system has no locks" in caplog.text
    lock.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff\x00"])
def test_a_lock_file_of_any_content_is_taken(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content)
    lock = RunLock(tmp_path)
    assert lock.hold(ALONE)
    lock.release()


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    other = Owner.now()
    assert not other.is_alive_here()  # this process itself
    parent = Owner(other.host, os.getppid(), other.started, other.machine, run_lock._start_ticks(os.getppid()))
    assert parent.is_alive_here()
    assert not Owner(other.host, os.getppid(), other.started, other.machine, ticks=1).is_alive_here()
    assert not Owner(other.host, os.getppid(), other.started, "another boot", parent.ticks).is_alive_here()


def test_a_lock_file_that_cannot_be_opened_stops_the_run_before_its_first_step(entry, tmp_path):
    (tmp_path / "output" / LOCK_FILE).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"\.plsc-lock: the folder cannot be locked for this run: Is a directory"):
        Trainer(entry.config)


def test_a_folder_that_was_removed_is_made_and_locked_again(process, tmp_path, caplog):
    root = tmp_path / "run" / "output"
    lock = RunLock(root)
    lock.hold(ALONE)
    lock.is_running = True
    lock.renew()
    assert not caplog.text
    shutil.rmtree(root.parent)
    lock.renew()
    assert json.loads((root / LOCK_FILE).read_text())["pid"] == os.getpid() and lock.is_running
    assert f"{root}: the folder was removed or replaced meanwhile" in caplog.text
    shutil.rmtree(root)
    child, _ = process(root)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"another run saves into this folder now: process {child.pid} on"):
            lock.renew()
    lock.release()
    assert (root / LOCK_FILE).exists()


def test_a_folder_whose_disk_is_not_mounted_is_left_alone(tmp_path, monkeypatch):
    root = tmp_path / "output"
    lock = RunLock(root)
    lock.hold(ALONE)
    aside = root.rename(tmp_path / "aside")
    with monkeypatch.context() as patched:
        patched.setattr(run_lock, "_device_of", lambda folder: -1)
        with pytest.raises(CheckpointError, match="its disk is not mounted; mount it again"):
            lock.renew()
        assert not root.exists()
        shutil.copytree(aside, root)  # the same content, on a device of another number
        lock.renew()
    lock.release()
    assert list(root.iterdir()) == []

"""Worker processes: missed by name when they die or hang, never left behind, flat in memory."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from plsc import ConfigError, DataError
from plsc.data import workers
from plsc.data.augment import Augment
from plsc.data.loader import TrainLoader
from plsc.data.records import Record
from plsc.data.sources.synthetic import SyntheticRecords
from plsc.data.transforms import Transform
from plsc.data.workers import WorkerPool

SHAPE = (3, 16, 16)


class Source(SyntheticRecords):
    """Small images; `act(index)` runs before one is handed out."""

    def __init__(self, act=lambda index: None, count=40):
        super().__init__(count, count, image_size=16)
        self.act = act

    def __getitem__(self, index):
        return self.act(index) or super().__getitem__(index)


@pytest.fixture
def loader():
    made = []

    def make(act=lambda index: None, batch_size=4, count=40, augment=None, **options):
        made.append(
            TrainLoader(
                Source(act, count),
                Transform(SHAPE, True, augment=augment),
                num_classes=count,
                batch_size=batch_size,
                **options,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def at(record, act):
    return lambda index: act() if index == record else None


def test_a_killed_worker_is_reported_with_the_record_it_held(loader):
    killed = loader(at(17, lambda: os.kill(os.getpid(), signal.SIGKILL)), num_workers=2)
    message = r"died \(killed by SIGKILL, out of memory\?\) while it held synthetic image 17;"
    with pytest.raises(DataError, match=message):
        list(killed.epoch(0))
    left = loader(at(3, lambda: os._exit(7)), num_workers=1)
    with pytest.raises(DataError, match=r"died \(exit status 7\) while it held synthetic image 3;"):
        list(left.epoch(0))


def test_a_hanging_worker_is_reported_with_the_record_it_holds(loader):
    hanging = loader(at(23, lambda: time.sleep(60)), num_workers=2, worker_timeout=0.5)
    start = time.monotonic()
    with pytest.raises(
        DataError, match=r"hangs: process \d+ has held synthetic image 23 for \d s; .*set_worker_timeout"
    ):
        list(hanging.epoch(0))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("busy", [False, True])
def test_a_stopped_worker_is_reported(busy):
    """Between two tasks a worker holds no record, and cannot say so either."""

    def fill(task, batch, hold):
        hold(task)
        time.sleep(2.0 if busy and task == 5 else 0.0)

    pool = WorkerPool(fill, 1, batch_shape=(1,), describe=lambda index: f"record {index}", timeout=2.5)
    replies = pool.run(range(20))
    next(replies)
    if busy:
        for _ in range(4):
            next(replies)
    time.sleep(0.5)
    pid = pool.pids[0]
    os.kill(pid, signal.SIGSTOP)
    held = "record 5" if busy else "no record"
    with pytest.raises(DataError, match=f"hangs: process {pid} has held {held} for [34] s; .*set_worker_timeout"):
        list(replies)
    assert pool.pids == []


def test_a_pause_of_the_whole_process_is_not_counted(monkeypatch):
    """As by Ctrl-Z and fg: the clock goes on, and the worker was paused, too."""
    seconds = iter(range(0, 10**6, 1000))
    monkeypatch.setattr("plsc.data.workers.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))

    def fill(task, batch, hold):
        time.sleep(1.2)

    pool = WorkerPool(fill, 1, batch_shape=(1,), describe=str, timeout=50)
    assert len(list(pool.run([1]))) == 1
    pool.close()


def test_a_daemon_cannot_start_workers_and_says_so(loader, monkeypatch):
    """A process of multiprocessing.Pool is one."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(ConfigError, match=r"num_workers is 2, but this process is a daemon, .*set_num_workers\(0\)"):
        list(loader(num_workers=2).epoch(0))
    assert len(list(loader(num_workers=0).epoch(0))) == 10


def test_processes_that_the_system_does_not_start_are_named(loader, monkeypatch):
    real, made = os.fork, []

    def fork():
        if made:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        made.append(real())
        return made[0]

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(DataError, match="process 2 of 3 .* cannot be started: Resource temp.*; lower set_num_workers"):
        list(loader(num_workers=3).epoch(0))
    with pytest.raises(ProcessLookupError):
        os.kill(made[0], 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fault_in_a_users_data_set_is_named_with_record_and_cause(loader, num_workers):
    broken = loader(at(5, lambda: {}["age"]), num_workers=num_workers)
    with pytest.raises(DataError, match=r"(?s)synthetic image 5: reading it failed:.*KeyError.*'age'"):
        list(broken.epoch(0))


def test_a_loader_works_again_after_a_fault_and_after_an_epoch_left_early(loader):
    made = loader(batch_size=3, num_workers=3)
    expected = [batch.labels.tolist() for batch in loader(batch_size=3).epoch(1)]
    first = made.epoch(0)
    next(first)
    assert [batch.labels.tolist() for batch in made.epoch(1)] == expected
    with pytest.raises(DataError, match="an epoch was begun before this one had ended"):
        next(first)
    assert [batch.labels.tolist() for batch in made.epoch(1, first_step=9)] == expected[9:]


@pytest.mark.parametrize("workers", [1, 3])
def test_augmented_batches_are_the_same_whatever_the_worker_count(loader, workers):
    augment = Augment(crop=0.2, rotate=10, color_jitter=0.3, rand_augment=2, gray=0.3, blur=0.3, erase=0.5)
    alone, shared = loader(augment=augment), loader(augment=augment, num_workers=workers)
    for one, other in zip(alone.epoch(2), shared.epoch(2)):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels)
    again = [batch.images for batch in alone.epoch(3)]
    assert not any(np.array_equal(one.images, other) for one, other in zip(alone.epoch(2), again))


@pytest.mark.parametrize("workers", [0, 2])
def test_finished_images_pass_and_do_not_mix_with_others(loader, workers):
    finished = loader(lambda index: Record(np.full(SHAPE, index, np.float32), index), num_workers=workers)
    for batch in finished.epoch(0):
        assert batch.images.dtype == np.float32
        assert batch.images[:, 0, 0, 0].tolist() == batch.labels.tolist()
    mixed = loader(at(7, lambda: Record(np.zeros(SHAPE, np.float32), 7)), num_workers=workers)
    with pytest.raises(DataError, match="a batch has 1 finished float32 image and 3 of another kind"):
        list(mixed.epoch(0))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_keep_their_content_while_anything_refers_to_them(loader, workers):
    made = loader(num_workers=workers)
    kept = [list(made.epoch(epoch)) for epoch in range(3)]
    rows = [batch.images[1] for batch in made.epoch(3)]
    last = next(made.epoch(4)).images
    for epoch, batches in enumerate(kept):
        assert all(np.array_equal(one.images, other.images) for one, other in zip(batches, loader().epoch(epoch)))
    assert all(np.array_equal(row, other.images[1]) for row, other in zip(rows, loader().epoch(3)))
    made.close()
    assert np.array_equal(last, next(loader().epoch(4)).images)


def test_batches_that_nothing_refers_to_are_not_copied(loader):
    made = loader(num_workers=2)
    for batch in made.epoch(0):
        assert not batch.images.flags.owndata


def anonymous_memory(pid) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell memory by process")
def test_memory_is_flat_over_epochs_and_nothing_is_left_in_shared_memory(loader):
    def named():
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line]

    before = named()
    made = loader(count=2000, batch_size=50, num_workers=2)
    seen = []
    for epoch in range(8):
        for _ in made.epoch(epoch):
            pass
        pids = made.worker_pids + [os.getpid()]
        seen.append([anonymous_memory(pid) for pid in pids])
    growth = np.array(seen[-1]) - np.array(seen[2])
    assert growth.max() < 1 << 20
    assert named() == before, "a map with a name outlives a process that is killed"
    made.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids[:-1])


SCRIPT = """
import os, sys
from plsc.data.loader import TrainLoader
from plsc.data.sources.synthetic import SyntheticRecords
from plsc.data.transforms import Transform
records, transform = SyntheticRecords(9, 900, image_size=16), Transform((3, 16, 16))
loaders = [TrainLoader(records, transform, num_classes=9, batch_size=4, num_workers=2) for _ in range(2)]
epochs = [loader.epoch(0) for loader in loaders]
for epoch in epochs:
    next(epoch)
print(*(pid for loader in loaders for pid in loader.worker_pids), flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise SystemExit", "os._exit(0)"])
def test_workers_end_with_the_process_that_made_them_however_it_ends(end):
    run = subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 4
    deadline = time.monotonic() + 10
    while (alive := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive == []
    assert "Traceback" not in run.stderr


def _runs(pid) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_forking_after_opencv_used_its_threads_does_not_hang():
    code = (
        "import cv2, numpy as np\ncv2.setNumThreads(4)\n"
        "cv2.GaussianBlur(np.zeros((4000, 4000, 3), np.uint8), (9, 9), 2)\n" + SCRIPT.format(end="")
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert len(run.stdout.split()) == 4


def test_a_balanced_loader_is_shared_by_ranks_and_resumes(loader):
    def make(**options):
        source = Source(count=60)
        source._labels = np.minimum(np.arange(60), 5)
        return TrainLoader(source, Transform(SHAPE), num_classes=60, class_balanced=True, **options)

    whole = [batch.labels.tolist() for batch in make(batch_size=6).epoch(0)]
    shares = [
        [batch.labels.tolist() for batch in make(batch_size=3, rank=rank, world_size=2).epoch(0)] for rank in range(2)
    ]
    assert [sum(step, []) for step in zip(*shares)] == whole
    assert [batch.labels.tolist() for batch in make(batch_size=6).epoch(0, 4)] == whole[4:]


def test_signals_to_all_processes_of_a_group_leave_the_reading_to_the_parent(loader):
    made = loader(count=400, num_workers=2)
    labels = []
    for number, batch in enumerate(made.epoch(0)):
        if number == 1:
            for pid in made.worker_pids:
                for what in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                    os.kill(pid, what)
        labels.extend(batch.labels)
    assert sorted(labels) == list(range(400))


class Tensor:
    """Stands for a tensor on a GPU: whoever frees it writes its process id to a pipe."""

    def __init__(self, pipe):
        self.itself, self.pipe, self.write, self.pid = self, pipe, os.write, os.getpid

    def __del__(self):
        self.write(self.pipe, b"%d " % self.pid())


def test_a_worker_frees_nothing_that_it_inherits_and_collects_its_own_garbage():
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def work(task, batch, hold):
        if task == "collect":
            return gc.isenabled(), gc.collect()
        Tensor(writing)
        return None

    gc.collect()
    gc.disable()
    try:
        Tensor(writing)  # a cycle, and so garbage that is not free yet
        pool = WorkerPool(work, 1, batch_shape=(1,), describe=str)
        assert not gc.isenabled()  # as it was
        (pid,) = pool.pids
        found = [reply for reply, _ in pool.run(["collect", "make", "collect"])]
        pool.close()
        assert found[0][0] and found[2][0]
        assert found[2][1] >= 1
        assert os.read(reading, 100).split() == [b"%d" % pid]  # its own, and not the one that it inherits
        gc.collect()
        assert os.read(reading, 100).split() == [b"%d" % os.getpid()]
    finally:
        gc.enable()
        gc.collect()  # before another file gets the number of the pipe
        os.close(reading)
        os.close(writing)


def test_nothing_is_collected_from_the_fork_until_the_worker_begins(monkeypatch):
    """The fork itself makes objects, at which a collection is due."""
    states, real = [], workers._leave_parents_objects
    monkeypatch.setattr(workers, "_leave_parents_objects", lambda: states.append(gc.isenabled()) or real())
    assert gc.isenabled()
    pool = WorkerPool(lambda task, batch, hold: states, 1, batch_shape=(1,), describe=str)
    assert gc.isenabled()
    assert [reply for reply, _ in pool.run([0])] == [[False]]
    pool.close()


def test_a_worker_has_paddle_compute_on_the_cpu(monkeypatch):
    devices = ["gpu:1"]
    monkeypatch.setattr(paddle, "set_device", devices.append)
    pool = WorkerPool(lambda task, batch, hold: devices, 1, batch_shape=(1,), describe=str)
    assert [reply for reply, _ in pool.run([0])] == [["gpu:1", "cpu"]]
    pool.close()
    assert devices == ["gpu:1"]  # of the training process

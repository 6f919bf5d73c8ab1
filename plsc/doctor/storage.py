"""Checks of the save folder and of the training data. Both are bounded, and what is written is gone in any case."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from plsc.doctor.findings import Finding, Request, check, fault, ok, warning
from plsc.errors import PLSCError
from plsc.utils.files import size_text
from plsc.utils.hints import setter
from plsc.utils.locations import is_remote
from plsc.utils.plural import counted

# What is written to measure the speed: at most so many bytes, for at most so many seconds, in blocks.
_MOST_BYTES, _MOST_SECONDS, _BLOCK = 256 << 20, 3.0, 8 << 20
# A checkpoint of ResNet50 with 100,000 classes and its momentum takes 0.8 GB, and six are kept by default.
_LITTLE_SPACE, _NO_SPACE = 5e9, 200e6
# At this speed such a checkpoint takes 16 s.
_SLOW_WRITING = 50e6
# Images read and decoded to measure the speed.
_MOST_IMAGES, _READ_SECONDS = 512, 5.0
# Two reader processes, the default, then give 200 images a second: less than ResNet50 trains on a GPU, and more than on
# a CPU. Images of 112 x 112 in one packed file come at several thousand a second from one process.
_SLOW_READING = 100.0


@check("save folder", seconds=60.0)
def save_folder(request: Request) -> Iterator[Finding]:
    folder = request.save_dir
    if is_remote(folder):
        yield ok(f"{folder} is remote: its free space and speed are not measured")
        return
    place = _existing(folder)
    name = str(folder) if place == folder else f"{folder} (not there yet: the nearest folder above it)"
    if not place.is_dir():
        yield fault(f"{place} is no folder", means="no checkpoint can be written there", cure="choose another folder")
        return
    free, another = shutil.disk_usage(place).free, setter("model_save_dir")
    try:
        written, seconds = _write(place, most=min(_MOST_BYTES, free // 4))
    except OSError as error:
        yield fault(
            f"{name} takes no file: {error.strerror or error}",
            means="no checkpoint can be written there",
            cure=f"correct the permissions of the folder, free space or a quota, or choose another: {another}",
        )
        return
    speed = written / max(seconds, 1e-9)
    seen = f"{name} has {size_text(free)} free, and takes {size_text(int(speed))} a second"
    if free < _NO_SPACE:
        yield fault(seen, means="hardly any checkpoint fits", cure=f"free space, or choose another: {another}")
    elif free < _LITTLE_SPACE:
        yield warning(
            seen,
            means="a checkpoint of ResNet50 with 100,000 classes takes 0.8 GB, and six are kept by default",
            cure=f"free space, or keep fewer: {setter('max_last_checkpoint_num')}",
        )
    elif speed < _SLOW_WRITING:
        yield warning(
            seen,
            means="a checkpoint of 1 GB takes 20 s and more; training goes on meanwhile where memory allows",
            cure=f"choose a folder on a local disk: {another}",
        )
    else:
        yield ok(seen)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    absolute = Path(os.path.abspath(folder))
    if absolute.exists():
        return folder
    return next(above for above in absolute.parents if above.exists())


def _write(folder: Path, *, most: int) -> tuple[int, float]:
    """(bytes, seconds) of writing to a file without a name: the system removes it also where this process is killed."""
    block, written = os.urandom(min(_BLOCK, max(most, 1))), 0
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        while written == 0 or (written + len(block) <= most and time.perf_counter() - start < _MOST_SECONDS):
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return written, time.perf_counter() - start


@check("training data", seconds=120.0)
def training_data(request: Request) -> Iterator[Finding]:
    """Read and decode some images, evenly spread, by this process alone."""
    source = request.dataset_dir
    if source is None:
        return
    if is_remote(source):
        yield ok(f"{source} is remote: training copies it to its cache first, and it is not read here")
        return
    inspect = "plsc data inspect names every damaged image; docs/data.md has the formats"
    try:
        from plsc.data.images import decode
        from plsc.data.sources import open_records

        records = open_records(source)
        count = len(records)
    except PLSCError as error:
        yield fault(f"it cannot be opened: {error}", means="it cannot be trained on", cure=inspect)
        return
    if not count:
        yield fault(f"{source} holds no image", means="it cannot be trained on", cure=inspect)
        return
    start, done, failures = time.perf_counter(), 0, []
    step = max(1, count // _MOST_IMAGES)
    for index in range(0, count, step):
        try:
            image = records[index].image
            if isinstance(image, bytes):
                decode(image)
        except PLSCError as error:
            failures.append(f"{records.describe(index)}: {error}")
        done += 1
        if time.perf_counter() - start > _READ_SECONDS or done == _MOST_IMAGES:
            break
    rate = done / max(time.perf_counter() - start, 1e-9)
    seen = f"{source}: {counted(count, 'image')} ({records.format}); one process reads and decodes {rate:,.0f} a second"
    if failures:
        yield fault(
            f"{len(failures)} of {counted(done, 'image')} cannot be read; the first: {failures[0]}",
            means="training stops at the first such image",
            cure=f"{inspect}; to pass over them: {setter('bad_images', 'skip')}",
        )
    if rate < _SLOW_READING:
        yield warning(
            seen,
            means="two reader processes, the default, give twice as many; a GPU trains more and waits",
            cure=f"more reader processes ({setter('num_workers')}); one packed file in place of many small ones, on a "
            f"local disk (plsc data convert); images of the size that is trained on",
        )
    else:
        yield ok(seen)

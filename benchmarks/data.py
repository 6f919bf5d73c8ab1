"""The speed of reading training images, beside the bare decoder on the same bytes.

    python benchmarks/data.py [--data FOLDER] [--seconds 4] [--rounds 3]

Two worker processes read a `.rec`, `.jpg` files and tar shards: read, decode, flip, channels first. The process that
takes the batches either leaves them uint8, as the trainer does, which normalizes on the device, or normalizes them to
float32 itself. Beside this, on two processes each: bare `cv2.imdecode` of the same bytes in memory, and a plain Python
loop as in training scripts for MXNet (seek, unpack, decode, flip, transpose and normalize image by image in NumPy). All
numbers come from alternating rounds of one run. The images are textured JPEGs made here, and those of --data.

"images/s/core" is images per second of processor time of all processes together, so that other load on the machine does
not count; "wall" is images per second on the clock. The ratio is per core, over the bare decoder.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import platform
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from plsc.data.convert.conversion import convert
from plsc.data.images import decode
from plsc.data.loader import TrainLoader
from plsc.data.records import Record, Records
from plsc.data.sources import open_records
from plsc.data.subset import SelectedRecords
from plsc.data.transforms import Transform, normalize

SHAPE, WORKERS, BATCH = (3, 112, 112), 2, 128  # the batch size is the default of `set_train_batch_size`


class Rate(NamedTuple):
    per_core: float
    wall: float


class Textured(Records):
    """JPEGs of the size and detail of photographs: 112 x 112 pixels, quality 95, about 8 KB."""

    num_classes, format = 136, "textured JPEGs"

    def __init__(self, count: int = 2720) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(count) % self.num_classes
        self.images = []
        for _ in range(count):
            coarse = cv2.resize(rng.integers(0, 256, (14, 14, 3), np.uint8), SHAPE[1:], interpolation=cv2.INTER_CUBIC)
            noisy = np.clip(coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)
            self.images.append(cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]))

    def describe(self, index: int) -> str:
        return f"textured image {index}"


def loader_rate(records: Records, seconds: float, finish: Callable[[np.ndarray], np.ndarray]) -> Rate:
    loader = TrainLoader(
        records, Transform(SHAPE, flip=True), num_classes=records.count_classes(), batch_size=BATCH, num_workers=WORKERS
    )
    try:
        batches = (batch for epoch in range(10**6) for batch in loader.epoch(epoch))
        for _ in range(4 * WORKERS):
            finish(next(batches).images)
        workers = loader.worker_pids
        begin, busy, count = time.perf_counter(), cpu_seconds([*workers, os.getpid()]), 0
        while time.perf_counter() - begin < seconds:
            count += len(finish(next(batches).images))
        wall = time.perf_counter() - begin
        # Batches made ahead of their use count for the next round as these did for the last.
        return Rate(count / (cpu_seconds([*workers, os.getpid()]) - busy), count / wall)
    finally:
        loader.close()


def processes_rate(work: Callable[[], Iterable[int]], seconds: float) -> Rate:
    """`work` yields after so many images; it runs in as many processes as the loader has workers."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run() -> None:
        cv2.setNumThreads(0)
        count, steps = 0, work()
        next(iter(steps))
        begin, busy = time.perf_counter(), time.process_time()
        for done in steps:
            count += done
            if time.perf_counter() - begin > seconds:
                break
        results.put((count, time.process_time() - busy, time.perf_counter() - begin))

    processes = [context.Process(target=run) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    parts = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return Rate(
        sum(count for count, _, _ in parts) / sum(busy for _, busy, _ in parts),
        sum(count / wall for count, _, wall in parts),
    )


def bare_decoder(images: list[bytes]) -> Callable[[], Iterable[int]]:
    def work() -> Iterable[int]:
        while True:
            for start in range(0, len(images), BATCH):
                for image in images[start : start + BATCH]:
                    cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
                yield len(images[start : start + BATCH])

    return work


def plain_loop(rec: Path) -> Callable[[], Iterable[int]]:
    offsets = [int(line.split()[1]) for line in rec.with_suffix(".idx").read_text().splitlines()]

    def read(file, offset: int) -> np.ndarray:
        file.seek(offset)
        _, length = struct.unpack("<II", file.read(8))
        payload = file.read(length)
        flag, _, _, _ = struct.unpack("<IfQQ", payload[:24])
        image = cv2.imdecode(np.frombuffer(payload[24 + 4 * flag :], np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            return image
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if np.random.random() < 0.5:
            image = image[:, ::-1]
        return (np.transpose(image, (2, 0, 1)).astype(np.float32) - 127.5) / 128.0

    def work() -> Iterable[int]:
        with open(rec, "rb") as file:
            while True:
                order = np.random.permutation(len(offsets))
                for start in range(0, len(order), BATCH):
                    found = (read(file, offsets[place]) for place in order[start : start + BATCH])
                    yield len(np.stack([image for image in found if image is not None]))

    return work


def cpu_seconds(pids: list[int]) -> float:
    """Processor time of processes so far, user and system."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def opening_ms(path: Path) -> float:
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        open_records(path)
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def measure(name: str, source: Records, folder: Path, seconds: float, rounds: int) -> dict:
    for to in ("rec", "list", "tar"):
        convert(source, folder / to, to=to)
    images = [source[index].image for index in range(len(source))]
    ways = {
        "bare cv2.imdecode": lambda: processes_rate(bare_decoder(images), seconds),
        "plain reader loop": lambda: processes_rate(plain_loop(folder / "rec" / "train.rec"), seconds),
    }
    for label, to in ((".rec", "rec"), (".jpg files", "list"), ("tar shards", "tar")):
        for kind, finish in (("uint8", np.asarray), ("float32", normalize)):
            ways[f"{label}, {kind}"] = functools.partial(loader_rate, open_records(folder / to), seconds, finish)
    rates = {label: [] for label in ways}
    for _ in range(rounds):
        for label, way in ways.items():
            rates[label].append(way())
    ratios = {
        label: statistics.median(
            rate.per_core / bare.per_core for rate, bare in zip(rates[label], rates["bare cv2.imdecode"])
        )
        for label in ways
    }
    size = sum(map(len, images)) / len(images)
    opened = opening_ms(folder / "rec" / "train.rec")
    print(f"\n{name}: {len(images)} images of {size / 1000:.1f} kB; the .rec opens in {opened:.1f} ms")
    print(f"{'':22}{'images/s/core':>15}{'of bare':>9}{'wall':>10}")
    rows = {}
    for label, found in rates.items():
        per_core, wall = (statistics.median(column) for column in zip(*found))
        rows[label] = {"per_core": round(per_core), "of_bare": round(ratios[label], 3), "wall": round(wall)}
        print(f"{label:22}{per_core:15.0f}{ratios[label]:9.2f}{wall:10.0f}")
    stages = where_the_time_goes(folder / "rec", images)
    print(
        "microseconds per image in one process: " + ", ".join(f"{name} {micros:.1f}" for name, micros in stages.items())
    )
    return {
        "images": len(images),
        "mean_bytes": round(size),
        "rec_opens_ms": round(opened, 2),
        "rates": rows,
        "microseconds": {name: round(micros, 1) for name, micros in stages.items()},
    }


def where_the_time_goes(rec: Path, images: list[bytes]) -> dict[str, float]:
    """Microseconds of processor time per image of each stage alone, in one process; the least of several runs."""
    records, images = open_records(rec), images[: 8 * BATCH]
    order = np.random.default_rng(0).permutation(len(records))[: len(images)].tolist()
    pixels = [decode(image) for image in images[:32]]
    transform, out = Transform(SHAPE, flip=True), np.empty(SHAPE, np.uint8)
    batch = np.stack([transform(image) for image in images[:BATCH]])
    finished = normalize(batch)
    loader = TrainLoader(
        SelectedRecords(records, order), transform, num_classes=records.count_classes(), batch_size=BATCH
    )
    stages: dict[str, Callable[[], object]] = {
        "bare cv2.imdecode": lambda: [
            cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) is None for image in images
        ],
        "decode": lambda: [decode(image) is None for image in images],
        "read": lambda: [records[index] is None for index in order],
        "flip and planes": lambda: [
            transform(pixels[index % 32], (index % 2) << 63, out=out) is None for index in order
        ],
        "all that a worker does": lambda: [batch is None for batch in loader.epoch(0)],
        "normalize": lambda: [normalize(batch) is None for _ in range(len(images) // BATCH)],
        "only writing float32": lambda: [finished.fill(1) for _ in range(len(images) // BATCH)],
    }
    least = {}
    for name, stage in stages.items():
        times = []
        for _ in range(9):
            begin = time.process_time()
            stage()
            times.append(time.process_time() - begin)
        least[name] = 1e6 * min(times) / len(images)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a second set to measure, of any kind that PLSC reads")
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements whose median is shown")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    machine = f"{platform.machine()}-{os.cpu_count()}cores"
    found = {"workers": WORKERS, "batch": BATCH, "opencv": cv2.__version__, "python": platform.python_version()}
    sets: dict[str, Records] = {"textured": Textured()}
    if options.data is not None:
        sets[options.data] = open_records(options.data)
    for name, source in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, source, Path(folder), options.seconds, options.rounds)
    path = Path(__file__).with_name("results") / f"data-{machine}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten to {path.relative_to(Path(__file__).parents[1])}")


if __name__ == "__main__":
    main()

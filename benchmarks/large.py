"""Millions of classes trained for a few steps, stopped, resumed and compared with a run that was never stopped. CPU.

    python benchmarks/large.py                                     # 10 million x 512 on two ranks; 45 GB of disk
    python benchmarks/large.py --classes 200000 --dim 64           # a minute
    python benchmarks/large.py --classes 30000000 --location disk --sample 0.01 --steps 50 --once --folder /mnt/disk

Three runs of ResNetTiny with ArcFace over all classes, each in processes of its own:

    whole      all steps
    first      half of them, with a checkpoint at the end
    rest       resumed from that checkpoint, to the end

The tensors of the checkpoints of `whole` and `rest` must be equal to the bit; with --once `whole` is the only run.
Every second the memory of all processes together is measured as the sum of their proportional shares (PSS), in which a
page that two processes share counts once, and the anonymous part of it. Files in the page cache are not in it, unless
they are mapped, as the centers are with --location disk: their pages that happen to be in memory count in the first
sum. These files lie on the disk beside the checkpoints, and take as much as one: 30 million x 512 in bfloat16 and int8
need twice 43 GiB with --once, and four times without.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout
GIB = 2**30


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    folder = Path(tempfile.mkdtemp(prefix="plsc-large-", dir=options.folder))
    half = options.steps // 2
    try:
        whole = run("whole", folder / "whole", options.steps, options)
        runs = {"whole": whole}
        if not options.once:
            runs["first"] = run("first", folder / "parts", half, options)
            runs["rest"] = run("rest", folder / "parts", options.steps, options)
        same, of_checkpoint = compare(folder / "whole", folder / ("whole" if options.once else "parts"))
    finally:
        shutil.rmtree(folder)
    state = options.classes * options.dim
    peak = max(found["peak"] for found in runs.values())
    anonymous = max(found["anonymous"] for found in runs.values())
    found = {
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "peak GiB of all processes (PSS)": round(peak / GIB, 2),
        "bytes a number of the centers": round(peak / state, 2),
        "of it anonymous GiB": round(anonymous / GIB, 2),
        "anonymous bytes a number of the centers": round(anonymous / state, 2),
        "checkpoint GiB": round(of_checkpoint / GIB, 2),
        "largest file of the checkpoint GiB": round(whole["largest"] / GIB, 2),
        "median seconds a step": whole["step"],
        "first and last step, seconds": whole["ends"],
        "seconds": {each: found["seconds"] for each, found in runs.items()},
        "resumed equals never stopped": None if options.once else same,
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if not same:
        sys.exit("the checkpoints differ")


SETTINGS = ("classes", "dim", "ranks", "batch", "steps", "centers", "momentum", "ratio", "location")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="images per rank")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--centers", default="bfloat16", help="center_storage")
    parser.add_argument("--momentum", default="int8", help="momentum_storage")
    parser.add_argument("--ratio", "--sample", type=float, default=1.0, help="sample_ratio")
    parser.add_argument("--location", default="device", help="center_location; the files of disk lie in --folder")
    parser.add_argument("--once", action="store_true", help="one run: nothing is resumed and compared")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written; they are deleted at the end")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, folder: Path, steps: int, options: argparse.Namespace) -> dict[str, float]:
    """Train to so many steps; returns the peak of the memory in bytes, seconds, and what the ranks found."""
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(options.ranks)]
    command += ["--log_dir", str(folder.parent / f"log-{name}"), str(HERE / "large.py"), "--worker", str(folder)]
    for setting in SETTINGS:
        command += [f"--{setting}", str(steps if setting == "steps" else getattr(options, setting))]
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log = folder.parent / f"{name}.log"
    start, peak, anonymous = time.monotonic(), 0, 0
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **threads, "PYTHONPATH": path}, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            found = proportional_bytes(process.pid)
            peak, anonymous = max(peak, found[0]), max(anonymous, found[1])
            time.sleep(1.0)
    if process.returncode:
        sys.exit(f"{name}: the ranks ended with status {process.returncode}:\n{log.read_text()[-4000:]}")
    figures = {"peak": peak, "anonymous": anonymous, "seconds": round(time.monotonic() - start, 1)}
    print(f"{name}: {figures['seconds']:.0f} s, peak {peak / GIB:.2f} GiB, {anonymous / GIB:.2f} anonymous", flush=True)
    newest = checkpoint_in(folder)
    largest = max(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    return {**figures, **json.loads((folder / "steps.json").read_text()), "largest": largest}


def proportional_bytes(root: int) -> tuple[int, int]:
    """Proportional set size of a process and all below it, and the part of it that is no file."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found, anonymous, left = 0, 0, [root]
    while left:
        process = left.pop()
        left += children.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss")}
        found += sizes["Pss"]
        anonymous += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
    return found, anonymous


def checkpoint_in(folder: Path) -> Path:
    from plsc.checkpoint import list_checkpoints

    return list_checkpoints(folder)[-1]


def compare(one: Path, other: Path) -> tuple[bool, int]:
    """Whether the newest checkpoints hold equal files of tensors, and their bytes."""
    first, second = checkpoint_in(one), checkpoint_in(other)
    names = sorted(file.relative_to(first) for file in first.rglob("*.safetensors"))
    same = bool(names) and names == sorted(file.relative_to(second) for file in second.rglob("*.safetensors"))
    return same and all(equal_files(first / name, second / name) for name in names), sum(
        (first / name).stat().st_size for name in names
    )


def equal_files(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while True:
            a, b = first.read(1 << 24), second.read(1 << 24)
            if a != b:
                return False
            if not a:
                return True


# Under the launcher


class Images:
    """Random images of random classes, the same in each run."""

    def __init__(self, classes: int, count: int) -> None:
        import numpy as np

        self._labels = np.random.default_rng(0).integers(classes, size=count)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int):
        import numpy as np

        return np.random.default_rng(index).integers(256, size=(16, 16, 3)).astype(np.uint8), int(self._labels[index])


def work(options: argparse.Namespace) -> None:
    import numpy as np

    from plsc import Config, Trainer
    from plsc.engine.observers import Observer

    class Times(Observer):
        """When steps end; the loss is read, so that a step is over."""

        def __init__(self) -> None:
            self.found: list[float] = []

        def on_step(self, step) -> None:
            float(step.values["loss"])
            self.found.append(time.monotonic())

    times = Times()
    config = Config(
        train_dataset=Images(options.classes, 64 * options.batch * options.ranks),
        num_classes=options.classes,
        model_name="ResNetTiny",
        image_shape=(3, 16, 16),
        emb_dim=options.dim,
        loss_type="dist_arcface",
        sample_ratio=options.ratio,
        center_storage=options.centers,
        momentum_storage=options.momentum,
        center_location=options.location,
        train_batch_size=options.batch,
        num_workers=0,
        train_steps=options.steps,
        model_save_dir=str(options.worker),
        auto_resume=True,
        with_test=False,
    )
    trainer = Trainer(config, observers=[times])
    trainer.train()
    if trainer.topology.is_main:
        steps = np.diff(times.found)
        ends = [round(float(steps[end]), 3) for end in (0, -1)] if len(steps) else None
        figures = {"step": round(float(np.median(steps)), 3) if len(steps) else None, "ends": ends}
        (options.worker / "steps.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

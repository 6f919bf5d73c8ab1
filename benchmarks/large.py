"""Millions of classes trained for a few steps, stopped, resumed and compared with a run that was never stopped. CPU.

    python benchmarks/large.py                                     # 10 million x 512 on two ranks; 31 GB of disk
    python benchmarks/large.py --classes 200000 --dim 64           # a minute
    python benchmarks/large.py --classes 30000000 --location disk --sample 0.01 --steps 50 --once --folder /mnt/disk

Two runs of ResNetTiny with ArcFace over all classes, each in processes of its own:

    whole      all steps, with a checkpoint after half of them and at the end
    rest       resumed from the first of these checkpoints, to the end

The tensors of the last checkpoints of both must be equal to the bit. They are compared by the SHA-256 of their files,
so that the one of `whole` is deleted before `rest` begins, and two are on the disk at most. With --once `whole` is the
only run, with one checkpoint at its end. Every second the memory of all processes together is measured as the sum of
their proportional shares (PSS), in which a page that two processes share counts once, and the anonymous part of it.
Files in the page cache are in neither, but for mapped ones, as the centers of --location disk: their pages that are in
memory count in the first. These files lie in --folder beside the checkpoints, and take as much as one: 30 million x 512
in bfloat16 and int8 need 43 GiB for them, and as much for each checkpoint. `logits` is set, since what 'auto' chooses
depends on the memory that is free, and sums in another order have other last digits.
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
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # this checkout
GIB = 2**30


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    folder = Path(tempfile.mkdtemp(prefix="plsc-large-", dir=options.folder))
    try:
        runs = {"whole": run("whole", folder, options)}
        same = None
        if not options.once:
            half, last = checkpoints_in(folder / "whole")
            expected = digests(last)
            shutil.rmtree(last)
            runs["rest"] = run("rest", folder, options, "--resumed", half)
            same = digests(checkpoints_in(folder / "rest")[-1]) == expected
    finally:
        shutil.rmtree(folder)
    peak, whole = max(each["peak"] for each in runs.values()), runs["whole"]
    found = {
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "peak GiB of all processes (PSS)": round(peak / GIB, 2),
        "bytes a number of the centers": round(peak / (options.classes * options.dim), 2),
        "checkpoint GiB": round(whole["bytes"] / GIB, 2),
        "largest file of the checkpoint GiB": round(whole["largest"] / GIB, 2),
        "resumed equals never stopped": same,
        "runs": {
            name: {
                "peak GiB": round(each["peak"] / GIB, 2),
                "peak of anonymous memory GiB": round(each["anonymous"] / GIB, 2),
                "least memory available GiB": round(each["available"] / GIB, 2),
                "mean load of the machine": each["load"],
                "median seconds a step": each["step"],
                "processor seconds of rank 0 a step": each["cpu"],
                "seconds of the save": each["save"],
                "seconds": each["seconds"],
                "save": each["way"],
            }
            for name, each in runs.items()
        },
    }
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if same is False:
        sys.exit("the checkpoints differ")


SETTINGS = ("classes", "dim", "ranks", "batch", "steps", "centers", "momentum", "ratio", "logits", "location")


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
    parser.add_argument("--logits", default="store", help="store or recompute")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written; they are deleted at the end")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resumed", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(name: str, root: Path, options: argparse.Namespace, *further: Any) -> dict[str, Any]:
    """Train in `root/name`; returns memory in bytes, seconds, how it was saved, and what the ranks found."""
    folder = root / name
    command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(options.ranks)]
    command += ["--log_dir", str(root / f"log-{name}"), str(HERE / "large.py"), "--worker", str(folder)]
    for setting in SETTINGS:
        command += [f"--{setting}", str(getattr(options, setting))]
    command += [*map(str, further), *(["--once"] if options.once else [])]
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    log = root / f"{name}.log"
    start, peak, anonymous, available, loads = time.monotonic(), 0, 0, 1 << 60, []
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **threads, "PYTHONPATH": path}, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            found = proportional_bytes(process.pid)
            peak, anonymous = max(peak, found[0]), max(anonymous, found[1])
            available = min(available, available_bytes())
            loads.append(os.getloadavg()[0])
            time.sleep(1.0)
    if process.returncode:
        sys.exit(f"{name}: the ranks ended with status {process.returncode}:\n{log.read_text()[-4000:]}")
    seconds = round(time.monotonic() - start, 1)
    sizes = [file.stat().st_size for file in files_of(checkpoints_in(folder)[-1])]
    print(f"{name}: {seconds:.0f} s, peak {peak / GIB:.2f} GiB, {anonymous / GIB:.2f} anonymous", flush=True)
    written = (root / f"log-{name}" / "workerlog.0").read_text().splitlines()
    return {
        "peak": peak,
        "anonymous": anonymous,
        "available": available,
        "load": round(sum(loads) / max(len(loads), 1), 1),
        "seconds": seconds,
        "bytes": sum(sizes),
        "largest": max(sizes),
        "way": [line[line.index("training ") :] for line in written if "while checkpoints are written" in line],
        **json.loads((folder / "steps.json").read_text()),
    }


def available_bytes() -> int:
    """The kernel's estimate of the memory that new programs can take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


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


def checkpoints_in(folder: Path) -> list[Path]:
    from plsc.checkpoint import list_checkpoints

    return list_checkpoints(folder)


def files_of(checkpoint: Path) -> list[Path]:
    """The files that hold tensors."""
    return sorted(checkpoint.glob("*.safetensors"))


def digests(checkpoint: Path) -> dict[str, str]:
    from plsc.utils.files import file_digest

    return {file.name: file_digest(file) for file in files_of(checkpoint)}


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
            self.processor: list[float] = []

        def on_step(self, step) -> None:
            float(step.values["loss"])
            self.found.append(time.monotonic())
            self.processor.append(time.process_time())

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
        logits=options.logits,
        train_batch_size=options.batch,
        num_workers=0,
        train_steps=options.steps,
        model_save_dir=str(options.worker),
        save_steps=None if options.once else options.steps // 2,
        save_minutes=None,
        **({"checkpoint_dir": str(options.resumed)} if options.resumed else {}),
        with_test=False,
    )
    trainer = Trainer(config, observers=[times])
    trainer.train()
    if trainer.topology.is_main:
        figures = {
            "step": round(float(np.median(np.diff(times.found))), 3),
            "cpu": round(float(np.median(np.diff(times.processor))), 3),
            "save": round(time.monotonic() - times.found[-1], 1),
        }
        (options.worker / "steps.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

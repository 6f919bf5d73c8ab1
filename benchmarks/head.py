"""Time and memory of the sharded head, and of the three matrix products that any exact head needs.

    python benchmarks/head.py                                          # 200,000 classes
    python benchmarks/head.py --classes 1000000                        # the size of the figures in docs/losses.md
    python benchmarks/head.py --torch-python /path/to/python           # with PyTorch Partial FC of another environment

The ranks run on the CPU with one thread each, or on GPUs where Paddle finds some, which was never tried. Before every
step of a head, a bare loop of the three matrix products runs over the same weight. A step's time is also given over the
median time of that loop, since machines differ, and one machine differs from hour to hour. The peak is the resident
memory of the variant's process beyond what the process held before weight and momentum were made, or the memory of the
GPU. Time and peak are those of the slowest rank.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VARIANTS = ("fused", "recompute", "sampled", "unfused", "plain")
TORCH = ("torch", "torch sampled", "published", "published sampled")
LABELS = {
    "fused": "fused, logits stored",
    "recompute": "fused, logits computed twice",
    "sampled": "fused, sampled",
    "unfused": "unfused",
    "plain": "plain Paddle operators",
    "torch": "PyTorch Partial FC, all classes",
    "torch sampled": "PyTorch Partial FC, sampled",
    "published": "PartialFC_V2's steps, all classes",
    "published sampled": "PartialFC_V2's steps, sampled",
}
# float32 copies of [S, G] and of [S, D] that a variant needs at its peak, roughly. What does not fit is left out.
COPIES = {
    "plain": (10, 5),
    "unfused": (6, 5),
    "torch": (4, 5),
    "published": (5, 5),
    "published sampled": (1, 5),
    "fused": (1, 2.2),
}


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    results = {}
    for name in options.variants.split(","):
        needed, free = memory_needed(name, options), free_memory()
        if needed > 0.8 * free:
            print(f"{LABELS[name]}: left out, needs about {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free")
            continue
        found = run_torch(name, options) if name in TORCH else run_variant(name, options)
        if found:
            results[name] = found
            print(line(name, found, results), flush=True)
    report(results, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64, help="samples per rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=0.1, help="share of classes in the sampled variants")
    parser.add_argument("--steps", type=int, default=5, help="measured steps, after two of warm-up")
    parser.add_argument("--variants", default=",".join(VARIANTS + TORCH))
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# One variant, under the launcher


def work(options: argparse.Namespace) -> None:
    import head_variants as heads
    import paddle

    from plsc.distributed.collectives import Collectives
    from plsc.distributed.topology import init_topology
    from plsc.utils.ranges import shard_range

    topology = init_topology()
    collectives = Collectives(topology)
    paddle.seed(topology.rank)
    shard = shard_range(options.classes, topology.world_size, shard=topology.rank)
    paddle.matmul(paddle.ones([256, 256]), paddle.ones([256, 256]))
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    weight = heads.make_weight(shard.size, options.dim)
    samples = options.batch * topology.world_size
    gemm = heads.Gemm(weight, samples)
    if options.worker == "plain":
        head = heads.Plain(weight, shard.start, collectives)
    elif options.worker == "unfused":
        head = heads.Unfused(weight, shard.start, collectives)
    else:
        mode, ratio = (
            "recompute" if options.worker == "recompute" else "store",
            options.ratio if options.worker == "sampled" else 1.0,
        )
        head = heads.Fused(weight, shard.start, collectives, samples=samples, logits=mode, ratio=ratio)

    def step() -> None:
        head(features, labels)

    def seconds(call) -> float:
        collectives.barrier()
        start = time.perf_counter()
        call()
        if topology.on_gpu:
            paddle.device.synchronize()
        return collectives.all_reduce_max(paddle.to_tensor([time.perf_counter() - start], "float64")).item()

    bare, own = [], []
    for _ in range(options.steps + 2):
        features = paddle.randn([options.batch, options.dim])
        labels = paddle.randint(0, options.classes, [options.batch])
        bare.append(seconds(gemm))
        own.append(seconds(step))
    # On a GPU its own memory; weight and momentum are in it, as they are on a CPU.
    used = paddle.device.cuda.max_memory_allocated() if topology.on_gpu else memory("VmHWM") - base
    peak = collectives.all_reduce_max(paddle.to_tensor([float(used)], "float64")).item()
    if topology.is_main:
        answer = {
            "seconds": median(own[2:]),
            "gemm_seconds": median(bare[2:]),
            "memory": peak,
            "state": 2 * shard.size * options.dim * 4,
            "all_seconds": own,
            "all_gemm_seconds": bare,
        }
        options.answer.write_text(json.dumps(answer))


def run_variant(name: str, options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        launcher = [
            sys.executable,
            "-m",
            "paddle.distributed.launch",
            "--nproc_per_node",
            options.ranks,
            "--log_dir",
            f"{folder}/log",
            __file__,
            "--worker",
            name,
            "--answer",
            answer,
        ]
        done = subprocess.run(
            [str(part) for part in launcher + sizes(options)], env=environment(), text=True, capture_output=True
        )
        if not answer.exists():
            sys.exit(f"{LABELS[name]}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.loads(answer.read_text())


def run_torch(name: str, options: argparse.Namespace) -> dict:
    if options.torch_python == sys.executable and importlib.util.find_spec("torch") is None:
        print(f"{LABELS[name]}: left out, torch is not installed (--torch-python names an interpreter that has it)")
        return {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        options.torch_python,
        HERE / "head_torch.py",
        *sizes(options)[:6],
        "--steps",
        options.steps,
        "--ratio",
        options.ratio if name.endswith("sampled") else 1.0,
    ]
    command += ["--published"] if name.startswith("published") else []
    ranks = []
    for rank in range(options.ranks):
        where = {
            "RANK": str(rank),
            "WORLD_SIZE": str(options.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks.append(
            subprocess.Popen(
                [str(part) for part in command], env={**environment(), **where}, text=True, stdout=subprocess.PIPE
            )
        )
    outputs = [process.communicate()[0] for process in ranks]
    return json.loads(outputs[0].splitlines()[-1])


def sizes(options: argparse.Namespace) -> list:
    return [
        "--classes",
        options.classes,
        "--dim",
        options.dim,
        "--batch",
        options.batch,
        "--ratio",
        options.ratio,
        "--steps",
        options.steps,
    ]


def environment() -> dict:
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    return {
        **kept,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


# The report


def line(name: str, found: dict, results: dict) -> str:
    ratio, reference = found["seconds"] / found["gemm_seconds"], results.get("fused")
    # Each time over its own matrix products, so that a busier minute of the machine cancels out.
    against = f"{ratio * reference['gemm_seconds'] / reference['seconds']:5.2f} x fused  " if reference else ""
    return (
        f"{LABELS[name]:32s} {found['seconds'] * 1e3:7.0f} ms {ratio:6.2f} x GEMM "
        f"({found['gemm_seconds'] * 1e3:.0f} ms)  {against}peak {found['memory'] / 2**20:7.0f} MiB, "
        f"{found['memory'] / found['state']:5.2f} x weights + momentum"
    )


def report(results: dict, options: argparse.Namespace) -> None:
    print(f"\n{options.classes} classes, D = {options.dim}, {options.batch} samples on each of {options.ranks} ranks")
    for name, found in results.items():
        print(line(name, found, results))
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"head-{platform.node() or 'machine'}-{options.classes}"
    about = {name: getattr(options, name) for name in ("classes", "dim", "batch", "ranks", "ratio", "steps")}
    Path(f"{stem}.json").write_text(json.dumps({"processor": processor(), **about, "variants": results}, indent=1))
    print(f"written: {stem}.json")
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, peaks) = pyplot.subplots(1, 2, figsize=(10, 0.5 * len(results) + 1.5), sharey=True)
    names = [LABELS[name] for name in results]
    times.barh(names, [found["seconds"] / found["gemm_seconds"] for found in results.values()])
    times.set_xlabel("time over the bare matrix products")
    peaks.barh(names, [found["memory"] / found["state"] for found in results.values()])
    peaks.set_xlabel("peak memory over weights + momentum")
    times.invert_yaxis()
    figure.suptitle(f"{options.classes:,} classes, D = {options.dim}, {options.ranks} ranks x {options.batch} samples")
    figure.tight_layout()
    figure.savefig(f"{stem}.png", dpi=120)


def memory_needed(name: str, options: argparse.Namespace) -> float:
    logits, weights = COPIES.get(name, COPIES["fused"])
    return 4 * options.classes * (logits * options.batch * options.ranks + weights * options.dim)


def free_memory() -> int:
    row = next(row for row in Path("/proc/meminfo").read_text().splitlines() if row.startswith("MemAvailable"))
    return int(row.split()[1]) * 1024


def memory(field: str) -> int:
    row = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(row.split()[1]) * 1024


def processor() -> str:
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    return next((row.split(":")[1].strip() for row in rows if row.startswith("model name")), platform.machine())


def median(values: list) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()

"""How many classes one rank holds under a limit of its memory, by bisection, side by side with other ways. CPU.

    python benchmarks/memory_limit.py                                       # 4 GiB, D = 512, 128 samples
    python benchmarks/memory_limit.py --modes bf16+int8,plain --gib 2
    PLSC_TORCH_PYTHON=/path/to/python python benchmarks/memory_limit.py     # with PyTorch of another environment

A number of classes is held where a process under the limit makes the head and takes two whole steps of Momentum: loss,
gradient by the features, update. The limit is RLIMIT_DATA (ulimit -d), set before anything is imported: Linux counts in
it the private writable memory that a process has asked for, touched or not, and refuses more. It needs no rights, and
is checked at each allocation, so that the result does not depend on what other programs hold. Code and data of shared
libraries that are only read are not in it; the heap, Paddle's tensors, NumPy's arrays and stacks of threads are.

Ways, each with one thread:

    float32, bf16+bf16, bf16+int8, bf16+none   this library's ArcFace head, centers + momentum; `logits` is 'recompute',
                     which 'auto' chooses as well where memory is short
    plain            Paddle's operators: softmax of 64 times the cosines, autograd, paddle.optimizer.Momentum
    plain linear     the same without the normalization of centers, which autograd keeps two copies for
    torch            as plain, in PyTorch with torch.optim.SGD
    torch linear     as plain linear, in PyTorch
    torch model      the least that such a step in PyTorch takes: centers, their gradient, momentum, logits and their
                     gradient, in NumPy arrays that are written to, without the import of PyTorch

None of the other ways has a margin, which would take more. A way that fails for another reason than memory ends the
benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OURS = {
    "float32": {},
    "bf16+bf16": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "bf16+int8": {"center_storage": "bfloat16", "momentum_storage": "int8"},
    "bf16+none": {"center_storage": "bfloat16", "momentum_storage": "none"},
}
OTHERS = ("plain", "plain linear", "torch", "torch linear", "torch model")
SMALL = (20_000, 100_000)
SCALE, LEARNING_RATE, MOMENTUM, L2, STEPS = 64.0, 0.01, 0.9, 5e-4, 2
GIB = 2**30
# What allocators say that are refused: those of Python and C++, Paddle's, PyTorch's.
_REFUSED = re.compile(r"MemoryError|bad_alloc|ResourceExhausted|[Oo]ut of memory|allocate memory|Cannot allocate")


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    found: dict[str, Any] = {}
    for mode in options.modes.split(","):
        if mode in ("torch", "torch linear") and not options.torch_python:
            print(f"{mode}: left out, PLSC_TORCH_PYTHON names no interpreter that has torch", flush=True)
            continue
        found[mode] = bisect(mode, options)
        print(f"{mode:13s} {found[mode]['classes']:9d} classes, {found[mode]['bytes']:.2f} bytes a number", flush=True)
    settings = {name: getattr(options, name) for name in ("gib", "dim", "batch", "tolerance")}
    text = json.dumps({"settings": settings, "ways": found, "ratios": ratios(found)}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default=",".join([*OURS, *OTHERS]))
    parser.add_argument("--gib", type=float, default=4.0, help="the limit")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128, help="samples of a step")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of the number of classes")
    parser.add_argument("--torch-python", default=os.environ.get("PLSC_TORCH_PYTHON"), help="an interpreter with torch")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--classes", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def bisect(mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """The largest number of classes that was held, and the smallest that was not."""
    held, refused, tries, begin = 0, 0, 0, time.monotonic()
    guess = int(0.98 * expected(mode, options))
    answer: dict[str, float] = {}
    while not refused or refused > held * (1 + options.tolerance):
        own = probe(mode, guess, options)
        tries += 1
        if own is None:
            refused = guess
        else:
            held, answer = guess, own
        print(f"{mode:13s} {guess:9d} classes: {'held' if own else 'refused'}", flush=True)
        between = (held + refused) // 2 if refused else int(guess * (1 + options.tolerance))
        guess = between if held else int(guess * (1 - options.tolerance))
    return {
        "classes": held,
        "refused": refused,
        "bytes": round(options.gib * GIB / held / options.dim, 2),
        "tries": tries,
        "seconds": round(time.monotonic() - begin),
        **answer,
    }


def expected(mode: str, options: argparse.Namespace) -> int:
    """Where the peaks of two small numbers of classes, on a line, reach the limit."""
    peaks = [probe(mode, classes, options) for classes in SMALL]
    if None in peaks:
        sys.exit(f"{mode}: {SMALL[1]} classes do not fit under {options.gib} GiB")
    by_class = (peaks[1]["peak GiB"] - peaks[0]["peak GiB"]) / (SMALL[1] - SMALL[0])
    return int(SMALL[0] + (options.gib - peaks[0]["peak GiB"]) / by_class)


def probe(mode: str, classes: int, options: argparse.Namespace) -> dict[str, float] | None:
    """What a process that held so many classes says of its memory; None where memory was refused."""
    python = options.torch_python if mode in ("torch", "torch linear") else sys.executable
    command = [python, str(Path(__file__).resolve()), "--worker", mode, "--classes", str(classes)]
    for name in ("gib", "dim", "batch"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")},
        **{"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    }
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    # Some libraries do not look at what an allocation returns.
    if _REFUSED.search(done.stdout + done.stderr) or done.returncode in (-signal.SIGABRT, -signal.SIGSEGV):
        return None
    sys.exit(f"{mode}, {classes} classes: status {done.returncode}, not for want of memory:\n{done.stderr[-3000:]}")


def ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Classes of this library's ways over those of the others."""
    return {
        mode: {other: round(found[mode]["classes"] / found[other]["classes"], 2) for other in OTHERS if other in found}
        for mode in OURS
        if mode in found
    }


# In the process that has the limit


def work(options: argparse.Namespace) -> None:
    limit = int(options.gib * GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    make = {"torch": torch_step, "torch linear": torch_step, "torch model": model_step}
    makers = {**make, "plain": plain_step, "plain linear": plain_step}
    step = makers.get(options.worker, own_step)(options)
    for number in range(STEPS):
        step(number)
    # Of what the limit counts there is no peak, but of the address space there is.
    peak = memory("VmData") + memory("VmPeak") - memory("VmSize")
    print(json.dumps({"peak GiB": peak / GIB, "resident GiB": round(memory("VmHWM") / GIB, 2)}))


def own_step(options: argparse.Namespace):
    from plsc.config import Config
    from plsc.distributed.collectives import Collectives
    from plsc.distributed.topology import init_topology
    from plsc.engine.optimizer import NamedOptimizer
    from plsc.losses.classifier import Classifier

    init_topology()
    import paddle

    settings = {"num_classes": options.classes, "emb_dim": options.dim, "loss_type": "dist_arcface"}
    config = Config(**settings, logits="recompute", **OURS[options.worker])
    head = Classifier(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))

    def step(number: int) -> None:
        features = paddle.randn([options.batch, options.dim])
        loss = head.forward(features, paddle.randint(0, options.classes, [options.batch]), step=number)
        head.backward()
        head.update(LEARNING_RATE)
        assert loss.isfinite().item()

    return step


def plain_step(options: argparse.Namespace):
    import head_variants
    import paddle
    import paddle.nn.functional as F

    weight = head_variants.as_parameter(head_variants.make_weight(options.classes, options.dim))
    optimizer = paddle.optimizer.Momentum(LEARNING_RATE, MOMENTUM, [weight], weight_decay=L2)

    def step(number: int) -> None:
        features = F.normalize(paddle.randn([options.batch, options.dim]))
        features.stop_gradient = False
        centers = weight if options.worker.endswith("linear") else F.normalize(weight)
        logits = SCALE * paddle.matmul(features, centers, transpose_y=True)
        loss = F.cross_entropy(logits, paddle.randint(0, options.classes, [options.batch]))
        del logits, centers
        loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        assert loss.isfinite().item()

    return step


def torch_step(options: argparse.Namespace):
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    weight = torch.empty(options.classes, options.dim).normal_(0, 0.01).requires_grad_()
    optimizer = torch.optim.SGD([weight], LEARNING_RATE, MOMENTUM, weight_decay=L2, fused=True)

    def step(number: int) -> None:
        features = F.normalize(torch.randn(options.batch, options.dim)).requires_grad_()
        centers = weight if options.worker.endswith("linear") else F.normalize(weight)
        logits = F.linear(features, centers).mul_(SCALE)
        loss = F.cross_entropy(logits, torch.randint(0, options.classes, (options.batch,)))
        del logits, centers
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss.isfinite().item()

    return step


def model_step(options: argparse.Namespace):
    import numpy as np

    weight, momentum = (np.full([options.classes, options.dim], 0.01, np.float32) for _ in range(2))

    def step(number: int) -> None:
        held = [np.full([options.batch, options.classes], 1.0, np.float32) for _ in range(2)]
        gradient = np.full_like(weight, 0.01)
        np.multiply(momentum, MOMENTUM, out=momentum)
        np.add(momentum, gradient, out=momentum)
        np.subtract(weight, held[0][0, 0] * LEARNING_RATE, out=weight)

    return step


def memory(field: str) -> int:
    row = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(row.split()[1]) * 1024


if __name__ == "__main__":
    main()

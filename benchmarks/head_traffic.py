"""Bytes that the operators of a head read and write, counted: what a step costs where memory is the limit, as on GPUs.

    python benchmarks/head_traffic.py                            # this checkout
    PYTHONPATH=../plsc-before python benchmarks/head_traffic.py  # another

The head runs on the CPU by the operators of a GPU: no NumPy, a chunk as one block, half-precision products played. Each
operator counts what it reads and what it writes, once; `addmm_` also the copy of its target onto itself that its GPU
kernel makes. Two batch sizes give what a step moves per logit [S, G] and per number of the weight [S, D].
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import inspect

import paddle

# What makes a view, or what the others are counted by.
FREE = ("reshape", "squeeze", "unsqueeze", "slice", "view_dtype", "view_shape", "shape", "full", "empty", "uniform")
METHODS = ("__add__", "__sub__", "__mul__", "__rmul__", "__truediv__", "__gt__", "__and__", "__neg__")
MODES = {
    "float32": {},
    "float32, s=128": {"scale": 128.0},
    "float32, recompute": {"logits": "recompute"},
    "float32, softmax": {"margin": False},
    "float16": {"half": "float16"},
    "float16, recompute": {"half": "float16", "logits": "recompute"},
    "bfloat16": {"half": "bfloat16"},
}


# Operators that touch chosen rows only: of the target, as many bytes as the rows take.
BY_INDEX = ("index_select", "index_add_", "scatter_")


class Counter:
    """Counts while it is on."""

    def __init__(self) -> None:
        self.bytes, self._is_on = 0, True

    def wrap(self, owner: object, name: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def run(*arguments, **named):
            found = real(*arguments, **named)
            if self._is_on:
                if name in BY_INDEX:
                    rows = found if name == "index_select" else arguments[2]
                    self.count(arguments[1], rows, rows)
                else:
                    self.count(*arguments, found)
                if name == "addmm_":
                    self.count(arguments[0], arguments[0])
            return found

        setattr(owner, name, run)

    def count(self, *values) -> None:
        for value in values:
            if isinstance(value, (list, tuple)):
                self.count(*value)
            elif isinstance(value, paddle.Tensor):
                self.bytes += value.size * value.element_size()

    def play(self, run, *arguments):
        """The result of `run`, which stands for one operator."""
        self._is_on = False
        try:
            found = run(*arguments)
        finally:
            self._is_on = True
        self.count(*arguments, found)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default=";".join(MODES), help="some, separated by ;")
    options = parser.parse_args()
    counter = install()
    print(f"{'':22}{'per logit':>12}{'per number of the weight':>27}")
    for mode in options.modes.split(";"):
        logit, number = traffic(counter, **MODES[mode])
        print(f"{mode:22}{logit:10.1f} B{number:25.1f} B", flush=True)


def install() -> Counter:
    """Count from here on; before the first import of plsc.losses."""
    paddle.set_device("cpu")
    counter = Counter()
    for name in dir(paddle._C_ops):
        if not name.startswith("_") and not name.startswith(FREE) and callable(getattr(paddle._C_ops, name)):
            counter.wrap(paddle._C_ops, name)
    for name in METHODS:
        counter.wrap(paddle.Tensor, name)
    from plsc.losses import precision

    for name in ("ops", "logit_ops", "shard"):
        if importlib.util.find_spec(f"plsc.losses.{name}"):  # earlier versions have fewer modules
            importlib.import_module(f"plsc.losses.{name}").host_view = lambda tensor: None
    rounds_itself = hasattr(precision.Precision, "cast")  # else `_multiply` casts what it gets and what it returns

    def multiply(self, a, b, *, transpose_x=False):
        a, b = a.astype(self._dtype), b.astype(self._dtype)

        def product(a, b):
            return paddle.matmul(a.astype("float32"), b.astype("float32"), transpose_x).astype(self._dtype)

        found = counter.play(product, a, b)
        return found if rounds_itself else found.astype("float32")

    def spread(self, e, factor):
        if factor is None or not self.needs_half_range:
            return e, factor
        played = counter.play(lambda a, b: (a.astype("float32") * b).astype(self._dtype), e, factor)
        return played, None

    precision.HalfPrecision._multiply, precision.HalfPrecision.spread = multiply, spread
    return counter


def traffic(
    counter: Counter, *, half: str | None = None, logits: str = "store", scale: float = 64.0, margin: bool = True
) -> tuple[float, float]:
    """(bytes per logit, bytes per number of the weight) of one step with SGD."""
    classes, width = 16384, 32
    small, large = (step_bytes(counter, classes, width, samples, half, logits, scale, margin) for samples in (64, 128))
    per_logit = (large - small) / (classes * 64)
    return per_logit, (small - per_logit * classes * 64) / (classes * width)


def step_bytes(counter, classes, width, samples, half, logits, scale, margin) -> int:
    from plsc.losses import shard as shards
    from plsc.losses.fused import FusedSoftmax
    from plsc.losses.margins.combined import CombinedMargin
    from plsc.losses.precision import HalfPrecision
    from plsc.losses.row_optimizers import SGD

    shards.CHUNK_ROWS["cpu"] = shards.BLOCK_ROWS["cpu"] = classes // 4
    paddle.seed(0)
    own = shards.Shard(paddle.randn([classes, width]) * 0.1, SGD())
    options = {"logits": logits, "precision": HalfPrecision(half) if half else None}
    if "by_rows" in inspect.signature(FusedSoftmax).parameters:  # as on a GPU; earlier versions have one way only
        options["by_rows"] = True
    softmax = FusedSoftmax(CombinedMargin(m2=0.5) if margin else None, scale, **options)
    features, labels = paddle.randn([samples, width]), paddle.randint(0, classes, [samples])
    for _ in range(2):  # the first one makes the norms
        counter.bytes = 0
        state = softmax.loss_and_feature_gradient(features, labels, shard=own)
        own.update(softmax.row_gradients(state), learning_rate=0.1)
    return counter.bytes


if __name__ == "__main__":
    main()

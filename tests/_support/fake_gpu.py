"""A GPU that is not there: the code of PLSC that runs on GPUs, run on the CPU. `PLSC_FAKE_GPU=1` turns it on.

    PLSC_FAKE_GPU=1 python -m pytest tests/losses tests/engine/test_precision.py
    python tests/_support/fake_gpu.py script.py arguments    # a script under it, as ranks are

To modules of `plsc`, and to no others, every tensor says that it lies on a GPU, and Paddle that it has one. All
computation stays on the CPU. What a CPU cannot do is played:

    half operators          operands in float32, the result rounded to the half type
    exp_                    NumPy's, which becomes 0 as CUDA's does; Paddle's on CPUs ends at e^-709
    autocast                inputs and outputs of convolutions and linear layers are rounded to the half type, and so
                            are their gradients, which overflow where those of a GPU would; the tensors stay float32
    reduce_scatter, NCCL    all_reduce of gloo; float16, which gloo adds up wrongly, in float32
    CUDA's functions        memory, properties, streams and events: numbers of one card, and nothing to wait for

Chunks and blocks are 16 classes, so that small problems have several; a block is a chunk, as on a GPU.

What this cannot show: that a kernel exists or is right, the order in which streams run, memory, speed. A test that
is about CPUs is marked `cpu`; it is left out here, and where there is a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
import runpy
import sys
from types import SimpleNamespace

VARIABLE = "PLSC_FAKE_GPU"
CHUNK = 16
MEMORY = 2**35
_HALVES = ("float16", "bfloat16")
# As `paddle._C_ops` names them -> as Paddle counts them.
_HALF_OPERATORS = {
    "matmul": "matmul_v2",
    "addmm_": "addmm",
    "multiply": "elementwise_mul",
    "add": "elementwise_add",
    "add_": "elementwise_add",
    "subtract_": "elementwise_sub",
}
# (kernel, type) of those played, which Paddle's count of kernels does not show.
half_products: set[tuple[str, str]] = set()


def is_asked_for() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get(VARIABLE) == "1"


def install() -> None:
    """Play the GPU from here on, in this process and those it forks. Before the first import of `plsc.losses`."""
    import paddle

    _play_half_products(paddle)
    _play_exponentials(paddle)
    _play_autocast(paddle)
    _play_device(paddle)
    _play_collectives(paddle)
    from plsc.losses import shard

    shard.CHUNK_ROWS["gpu"] = shard.BLOCK_ROWS["gpu"] = CHUNK


def _is_plsc(depth: int = 2) -> bool:
    """Whether the function that calls the caller of this one is of the library."""
    return sys._getframe(depth).f_globals.get("__name__", "").partition(".")[0] == "plsc"


def _to_plsc(owner: object, **fakes: object) -> None:
    """Replace functions of `owner` for calls from `plsc`; for all others they stay. None are missing on this build."""
    for name, fake in fakes.items():
        setattr(owner, name, _chosen(getattr(owner, name, None), fake))


def _chosen(real, fake):
    @functools.wraps(real or fake)
    def choose(*arguments, **named):
        return (fake if _is_plsc() or real is None else real)(*arguments, **named)

    return choose


# What the CPU has no kernels for


def _play_half_products(paddle) -> None:
    """Everywhere, before `plsc.losses.ops` takes the operators: those of half types that a CPU has no kernels of."""
    for name, counted in _HALF_OPERATORS.items():
        setattr(paddle._C_ops, name, _in_float32(paddle, getattr(paddle._C_ops, name), counted, name.endswith("_")))


def _in_float32(paddle, operator, counted, is_in_place):
    def run(x, *arguments, **named):
        if not _is_half(x):
            return operator(x, *arguments, **named)
        half_products.add((counted, str(x.dtype).rpartition(".")[2]))
        out = x if is_in_place else named.pop("out", None)
        wide = [item.astype("float32") if _is_half(item) else item for item in (x, *arguments)]
        result = operator(*wide, **named).astype(x.dtype)
        return result if out is None else paddle.assign(result, out)

    return run


def _play_exponentials(paddle) -> None:
    """With NumPy, which returns 0 for large negative numbers as CUDA does; Eigen returns e^-709."""
    import numpy as np

    exp_ = paddle._C_ops.exp_

    def exactly(tensor):
        if not tensor.place.is_cpu_place() or str(tensor.dtype) not in ("paddle.float32", "paddle.float64"):
            return exp_(tensor)
        view = np.from_dlpack(tensor.detach())
        with np.errstate(over="ignore"):
            np.exp(view, out=view)
        return tensor

    paddle._C_ops.exp_ = exactly


def _is_half(item) -> bool:
    return str(getattr(item, "dtype", None)).rpartition(".")[2] in _HALVES


def _play_autocast(paddle) -> None:
    dtypes: list[str] = []  # of the contexts that are open

    @contextlib.contextmanager
    def auto_cast(enable=True, custom_white_list=None, custom_black_list=None, level="O1", dtype="float16", **options):
        dtypes.append(dtype if enable else "float32")
        try:
            yield
        finally:
            dtypes.pop()

    def rounded(forward):
        @functools.wraps(forward)
        def run(layer, x):
            dtype = dtypes[-1] if dtypes else "float32"
            if dtype == "float32":
                return forward(layer, x)
            return forward(layer, x.astype(dtype).astype("float32")).astype(dtype).astype("float32")

        return run

    _to_plsc(paddle.amp, auto_cast=auto_cast)
    for layer in (paddle.nn.Conv2D, paddle.nn.Linear):
        layer.forward = rounded(layer.forward)


# What the CPU has no device for


def _play_device(paddle) -> None:
    _play_places(paddle)
    chosen = ["gpu:0"]
    properties = SimpleNamespace(name="fake GPU", major=8, minor=0, total_memory=MEMORY, multi_processor_count=1)
    for owner in (paddle, paddle.device):
        _to_plsc(
            owner,
            is_compiled_with_cuda=lambda: True,
            set_device=lambda device: chosen.__setitem__(0, device),
            get_device=lambda: chosen[0],
        )
    for owner in (paddle.device, paddle.device.cuda):
        _to_plsc(
            owner,
            get_device_properties=lambda device=None: properties,
            get_device_capability=lambda device=None: (8, 0),
            get_device_name=lambda device=None: properties.name,
            synchronize=lambda device=None: None,
        )
    _to_plsc(
        paddle.device,
        Stream=_Stream,
        Event=_Event,
        current_stream=lambda device=None: _Stream(),
        stream_guard=lambda stream: contextlib.nullcontext(),
    )
    _to_plsc(paddle, CUDAPinnedPlace=paddle.CPUPlace, CUDAPlace=lambda index: paddle.CPUPlace())
    _to_plsc(paddle.base.core, gpu_memory_available=lambda: MEMORY)  # only in builds for GPUs
    nothing = dict.fromkeys(("memory_reserved", "memory_allocated", "max_memory_reserved", "max_memory_allocated"))
    _to_plsc(
        paddle.device.cuda,
        device_count=lambda: 1,
        empty_cache=lambda: None,
        **{name: lambda device=None: 0 for name in nothing},
    )


def _play_places(paddle) -> None:
    class GPUPlace(paddle.base.core.Place):
        """The CPU's place to Paddle, a GPU's to who asks in Python."""

        def __init__(self):
            super().__init__()
            self.set_place(paddle.CPUPlace())

        def is_cpu_place(self):
            return False

        def is_gpu_place(self):
            return True

        def gpu_device_id(self):
            return 0

    place, real = GPUPlace(), paddle.Tensor.place
    paddle.Tensor.place = property(lambda tensor: place if _is_plsc() else real.__get__(tensor))


class _Stream:
    """A stream on which everything is done at once."""

    def __init__(self, *options, **named):
        pass

    def synchronize(self):
        pass

    wait_event = wait_stream = record_event = lambda self, other=None: None
    query = lambda self: True  # noqa: E731


class _Event(_Stream):
    """An event that has happened."""

    def record(self, stream=None):
        pass


def _play_collectives(paddle) -> None:
    import paddle.distributed as dist

    os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
    dist.ParallelEnv._device_id = 0
    all_reduce = dist.all_reduce

    def wide_all_reduce(tensor, op=dist.ReduceOp.SUM, **options):
        if not _is_half(tensor):
            return all_reduce(tensor, op, **options)
        wide = tensor.astype("float32")
        all_reduce(wide, op)
        paddle.assign(wide.astype(tensor.dtype), tensor)
        return None

    def reduce_scatter(own, rows, op=dist.ReduceOp.SUM, **options):
        total = rows.clone()
        wide_all_reduce(total, op, **options)
        first = dist.get_rank(options.get("group")) * own.shape[0]
        paddle.assign(total[first : first + own.shape[0]], own)

    _to_plsc(dist, all_reduce=wide_all_reduce, reduce_scatter=reduce_scatter)
    _to_plsc(dist.stream, all_reduce=wide_all_reduce, reduce_scatter=reduce_scatter)


# The plugin of pytest


def pytest_report_header() -> str:
    return "PLSC believes that its tensors lie on a GPU"


def pytest_collection_modifyitems(config, items) -> None:
    """Leave out what is about CPUs, and tests of more than two ranks: their code is that of two."""
    import pytest

    more = [item for item in items if item.get_closest_marker("ranks") and _most_ranks(item) > 2]
    config.hook.pytest_deselected(items=more)
    items[:] = [item for item in items if item not in more]
    for item in items:
        if marker := item.get_closest_marker("cpu"):
            item.add_marker(pytest.mark.skip(reason=f"about CPUs: {marker.args[0]}"))


def _most_ranks(item) -> int:
    """The largest number of ranks among the parameters of a test that starts some."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return max((parameters[name] for name in ("ranks", "before", "after", "played") if name in parameters), default=1)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.argv = sys.argv[1:]
    from tests._support import fake_gpu  # this file as the module that scripts import

    fake_gpu.install()
    runpy.run_path(sys.argv[0], run_name="__main__")

"""A Paddle inference model in this process: one input array, one output array."""

from __future__ import annotations

import os
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import ServingError
from plsc.inference.embedding import Embeddings
from plsc.utils.files import utf8_folder
from plsc.utils.lazy import require_paddle
from plsc.utils.numbers import as_count
from plsc.utils.plural import counted

_GPU_MEMORY = 256  # MB that Paddle reserves first; it takes more as it needs more


class Predictor:
    """A loaded model of one input and one output. Safe to share between threads: one forward pass runs at a time.

    Paddle's own predictor is not: two threads exchange their inputs and outputs without an error. A lock costs nothing
    beside a predictor for each thread (Paddle's clones): Paddle holds Python's interpreter lock while it computes, so
    that clones do not run side by side either. A clone of ResNet50 takes 250 MB more.

    A forked process uses the predictors of its parent as they are, where no thread but the one that forked has computed
    with one. Otherwise the memory that oneDNN keeps of each thread makes passes fail and processes crash, also with a
    predictor that is loaded in the child. There, and after a fork from a process that uses a GPU, loading and `run`
    raise an error that says so.

    Args:
        model_file: .json or .pdmodel; its weights are in the .pdiparams file of the same name.
        threads: CPU threads of a forward pass, 1 or more; by default Paddle's own choice, which is 1.
        plain: use neither oneDNN nor fused kernels. The model then computes with the kernels of eager execution.
        device: 'cpu' or 'gpu:<index>'; by default the device that Paddle computes on in this process: that of
            `paddle.set_device`, else the first GPU, else the CPU.

    Attributes:
        input_name: the input's name in the model.
        output_name: the output's name in the model.

    Raises:
        MissingDependencyError: Paddle is not installed.
        ServingError: a file is missing, Paddle cannot load the model, `threads` is no number of 1 or more, there is no
            such device, or this process was forked from one that had used Paddle on several threads or on a GPU.
    """

    def __init__(
        self, model_file: Path, threads: int | None = None, *, plain: bool = False, device: str | None = None
    ) -> None:
        _check_fork()
        paddle = require_paddle()
        count = None if threads is None else as_count(threads)
        if threads is not None and count is None:
            raise ServingError(f"{model_file.parent}: got {threads!r} threads, expected 1 or more, as a whole number")
        for path in (model_file, model_file.with_suffix(".pdiparams")):
            if not path.is_file():
                raise ServingError(f"{path} is missing; export the model again")
        self._lock = threading.Lock()
        self._gpu = _gpu_of(_current_device() if device is None else device, paddle.device.cuda.device_count())
        with utf8_folder(model_file.parent) as folder:
            self._predictor = self._load(folder / model_file.name, model_file, threads=count, plain=plain)
        self.input_name: str = self._predictor.get_input_names()[0]
        self.output_name: str = self._predictor.get_output_names()[0]
        _predictors.add(self)

    def _load(self, readable: Path, model_file: Path, *, threads: int | None, plain: bool) -> Any:
        """Paddle's predictor of `model_file`, which Paddle reads by the path `readable`."""
        paddle = require_paddle()
        config = paddle.inference.Config(str(readable), str(readable.with_suffix(".pdiparams")))
        config.disable_glog_info()
        if threads is not None:
            config.set_cpu_math_library_num_threads(threads)
        if self._gpu is not None:
            config.enable_use_gpu(_GPU_MEMORY, self._gpu)
        if plain:
            config.switch_ir_optim(False)
            if hasattr(config, "disable_mkldnn"):
                config.disable_mkldnn()
        if b"leaky_relu" in model_file.read_bytes():
            # Paddle 3.3 crashes when it fuses a LeakyReLU with the convolution before it.
            config.delete_pass("conv_activation_onednn_fuse_pass")
        try:
            return paddle.inference.create_predictor(config)
        except Exception as error:
            raise ServingError(
                f"{model_file}: Paddle {paddle.__version__} cannot load it: {str(error).strip()[-300:]}"
                f"; export the model again with this Paddle"
            ) from None

    def run(self, batch: NDArray[Any]) -> Embeddings:
        """One forward pass: [N, ...] of the model's own type to outputs [N, D] float32.

        Raises:
            ServingError: this process was forked from one that had used Paddle on several threads or on a GPU.
        """
        batch = np.ascontiguousarray(batch)
        with self._lock:
            _check_fork()
            _users.add(threading.get_ident())
            feed = self._predictor.get_input_handle(self.input_name)
            feed.reshape(batch.shape)
            feed.copy_from_cpu(batch)
            self._predictor.run()
            outputs: Embeddings = self._predictor.get_output_handle(self.output_name).copy_to_cpu()
        return outputs


def _current_device() -> str:
    """What Paddle computes on in this process: 'gpu:<index>', else 'cpu'."""
    device: str = require_paddle().get_device()
    return device if device.startswith("gpu:") else "cpu"


def _gpu_of(device: str, count: int) -> int | None:
    """The index of a GPU; None for 'cpu'.

    Args:
        device: 'cpu' or 'gpu:<index>'.
        count: GPUs that Paddle finds.

    Raises:
        ServingError: the text is neither, or there is no such GPU.
    """
    if device == "cpu":
        return None
    found = re.fullmatch(r"gpu:(\d+)", device) if isinstance(device, str) else None
    if found is None or int(found[1]) >= count:
        raise ServingError(
            f"device: got {device!r}, expected cpu or gpu:<index>; Paddle finds {counted(count, 'GPU')} here"
        )
    return int(found[1])


_predictors: weakref.WeakSet[Predictor] = weakref.WeakSet()
_users: set[int] = set()  # the threads of this process that have computed with a predictor
_held: list[Predictor] = []  # while the process forks
_unusable: list[str] = []  # why this process, which was forked, must not compute


def _check_fork() -> None:
    if _unusable:
        raise ServingError(_unusable[0])


def _before_fork() -> None:
    """Wait for the passes of other threads, which do not exist in the child."""
    for predictor in list(_predictors):
        predictor._lock.acquire()
        _held.append(predictor)


def _after_fork() -> None:
    while _held:
        _held.pop()._lock.release()


def _after_fork_in_child() -> None:
    is_on_gpu = any(predictor._gpu is not None for predictor in _held)
    if is_on_gpu or _users - {threading.get_ident()}:
        why = "on a GPU" if is_on_gpu else "by several threads, or by another than the one that forked"
        _unusable.append(
            f"this process is a fork of process {os.getppid()}, where Paddle was used {why}, which Paddle does not "
            f"survive; start this process by multiprocessing's 'spawn' and load the model in it"
        )
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def keep_memory() -> None:
    """Keep the memory of intermediate results between forward passes, in every predictor made after this call.

    On a CPU this saves the 3 to 10 % of a pass that freeing and allocating takes. The memory kept is that of the
    largest batch so far: 60 MB per image for ResNet50 at 112 x 112. On a GPU Paddle keeps its memory anyway, so that
    nothing changes where Paddle computes on one in this process.
    """
    paddle = require_paddle()
    if _current_device() == "cpu":
        paddle.set_flags({"FLAGS_eager_delete_tensor_gb": -1.0})

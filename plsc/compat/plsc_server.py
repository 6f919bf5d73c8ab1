"""`PLSCServer`, the server of PLSC 0.1, over `plsc.serving.serve`. Its old import path is `plsc_serving.run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plsc.errors import ServingError


class PLSCServer:
    """Serves an exported model.

    Args:
        with_gpu: compute on a GPU, if this Paddle supports one; False computes on the CPU.

    Example:
        >>> PLSCServer(with_gpu=True).with_model("output/inference_model").run(gpu_index=0, port=8866)
    """

    def __init__(self, with_gpu: bool = True) -> None:
        self.with_gpu = with_gpu
        self.model_path: Path | None = None

    def with_model(self, model_path: str | Path) -> PLSCServer:
        """Choose the exported model to serve; returns self."""
        self.model_path = Path(model_path)
        return self

    def run(self, gpu_index: int = 0, port: int = 8866, **settings: Any) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            gpu_index: number of the GPU.
            port: port to listen on.
            settings: further settings of `plsc.serving.ServeSettings`. The default host is the loopback address; the
                server of PLSC 0.1 listened on every address, which is host="0.0.0.0".

        Raises:
            ServingError: no model was chosen, the model cannot be loaded, or the port is taken.
        """
        if self.model_path is None:
            raise ServingError("PLSCServer: no model chosen; call with_model(path) before run()")
        from plsc.serving.server import serve
        from plsc.serving.settings import ServeSettings
        from plsc.utils.logging import show_log

        show_log(is_main=True)
        with _visible_gpus(str(gpu_index) if self.with_gpu else ""):
            serve(ServeSettings(model=self.model_path, port=port, **settings))


@contextmanager
def _visible_gpus(value: str) -> Iterator[None]:
    """Set CUDA_VISIBLE_DEVICES, which the predictor processes inherit, and restore it."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before

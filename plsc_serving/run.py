"""`PLSCServer`, the server of PLSC 0.1, as a thin name over `plsc.serving.serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from plsc.errors import ServingError


class PLSCServer:
    """Serves an exported model: `PLSCServer(with_gpu=True).with_model(path).run(gpu_index=0, port=8866)`.

    Args:
        with_gpu: use a GPU, where this Paddle has one; False stays on the CPU.
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
            gpu_index: which GPU.
            port: to listen on.
            settings: of `plsc.serving.ServeSettings`. The server of old listened on every address; this one on
                loopback unless told `host="0.0.0.0"`.

        Raises:
            ServingError: no model was chosen, it cannot be loaded, or the port is taken.
        """
        if self.model_path is None:
            raise ServingError("PLSCServer: no model chosen; call with_model(path) before run()")
        from plsc.serving.server import serve
        from plsc.serving.settings import ServeSettings
        from plsc.utils.logging import show_log

        show_log(is_main=True)
        # The predictor processes inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu_index) if self.with_gpu else ""
        serve(ServeSettings(model=self.model_path, port=port, **settings))

"""A Paddle inference model in this process: one input array, one output array."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plsc.errors import ServingError
from plsc.utils.lazy import require, require_paddle


class Predictor:
    """A loaded model of one input and one output. Not for several threads at once.

    Args:
        model_file: .json or .pdmodel, its .pdiparams beside it.
        threads: of the CPU; Paddle's own choice (one) by default.
        plain: no oneDNN and no fusing, so that it computes with the kernels of eager execution.
        use_gpu: the first GPU, where this Paddle has one.

    Attributes:
        input_name, output_name: what the model calls them.
    """

    def __init__(self, model_file: Path, threads: int | None = None, plain: bool = False, use_gpu: bool = True) -> None:
        paddle = require_paddle()
        inference = require(
            "paddle.inference", "paddlepaddle (or paddlepaddle-gpu for NVIDIA GPUs)", "load_inference_model"
        )
        params = model_file.with_suffix(".pdiparams")
        for path in (model_file, params):
            if not path.is_file():
                raise ServingError(f"{path} is missing; export the model again")
        config = inference.Config(str(model_file), str(params))
        config.disable_glog_info()
        if threads is not None:
            config.set_cpu_math_library_num_threads(threads)
        if use_gpu and paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count():
            config.enable_use_gpu(256, 0)
        if plain:
            config.switch_ir_optim(False)
            if hasattr(config, "disable_mkldnn"):
                config.disable_mkldnn()
        if b"leaky_relu" in model_file.read_bytes():
            # Paddle 3.3 crashes where it fuses a convolution with one.
            config.delete_pass("conv_activation_onednn_fuse_pass")
        try:
            self._predictor = inference.create_predictor(config)
        except Exception as error:
            raise ServingError(
                f"{model_file}: Paddle {paddle.__version__} cannot load it: {str(error).strip()[-300:]}"
                f"; export the model again with this Paddle"
            ) from None
        self.input_name, self.output_name = (
            self._predictor.get_input_names()[0],
            self._predictor.get_output_names()[0],
        )

    def run(self, batch: np.ndarray) -> np.ndarray:
        """[N, ...] in, [N, D] out; the type is the model's own."""
        feed = self._predictor.get_input_handle(self.input_name)
        feed.reshape(batch.shape)
        feed.copy_from_cpu(np.ascontiguousarray(batch))
        self._predictor.run()
        return self._predictor.get_output_handle(self.output_name).copy_to_cpu()


def keep_memory() -> None:
    """Keep the memory of a network's intermediate results from pass to pass, in every predictor made hereafter.

    Freeing and fetching it anew takes 3 to 10 % of a pass on a CPU. Kept, it is that of the largest batch so far: 60 MB
    an image for ResNet50 at 112 x 112. On a GPU nothing changes, since Paddle keeps what it has of its memory anyway.
    """
    paddle = require_paddle()
    if not (paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        paddle.set_flags({"FLAGS_eager_delete_tensor_gb": -1.0})

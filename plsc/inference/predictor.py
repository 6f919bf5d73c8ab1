"""A Paddle inference model in this process: one input array, one output array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import ServingError
from plsc.inference.embedding import Embeddings
from plsc.utils.lazy import require_paddle


class Predictor:
    """A loaded model of one input and one output. Not for several threads at once.

    Args:
        model_file: .json or .pdmodel; its weights are in the .pdiparams file of the same name.
        threads: CPU threads of a forward pass, 1 or more; by default Paddle's own choice, which is 1.
        plain: use neither oneDNN nor fused kernels. The model then computes with the kernels of eager execution.
        use_gpu: run on the first GPU if this Paddle has one.

    Attributes:
        input_name: the input's name in the model.
        output_name: the output's name in the model.

    Raises:
        MissingDependencyError: Paddle is not installed.
        ServingError: a file is missing, or Paddle cannot load the model.
    """

    def __init__(
        self, model_file: Path, threads: int | None = None, *, plain: bool = False, use_gpu: bool = True
    ) -> None:
        paddle = require_paddle()
        params = model_file.with_suffix(".pdiparams")
        for path in (model_file, params):
            if not path.is_file():
                raise ServingError(f"{path} is missing; export the model again")
        config = paddle.inference.Config(str(model_file), str(params))
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
            # Paddle 3.3 crashes when it fuses a LeakyReLU with the convolution before it.
            config.delete_pass("conv_activation_onednn_fuse_pass")
        try:
            self._predictor = paddle.inference.create_predictor(config)
        except Exception as error:
            raise ServingError(
                f"{model_file}: Paddle {paddle.__version__} cannot load it: {str(error).strip()[-300:]}"
                f"; export the model again with this Paddle"
            ) from None
        self.input_name: str = self._predictor.get_input_names()[0]
        self.output_name: str = self._predictor.get_output_names()[0]

    def run(self, batch: NDArray[Any]) -> Embeddings:
        """One forward pass: [N, ...] of the model's own type to outputs [N, D] float32."""
        feed = self._predictor.get_input_handle(self.input_name)
        feed.reshape(batch.shape)
        feed.copy_from_cpu(np.ascontiguousarray(batch))
        self._predictor.run()
        outputs: Embeddings = self._predictor.get_output_handle(self.output_name).copy_to_cpu()
        return outputs


def keep_memory() -> None:
    """Keep the memory of intermediate results between forward passes, in every predictor made after this call.

    On a CPU this saves the 3 to 10 % of a pass that freeing and allocating takes. The memory kept is that of the
    largest batch so far: 60 MB per image for ResNet50 at 112 x 112. On a GPU Paddle keeps its memory anyway, so that
    nothing changes.
    """
    paddle = require_paddle()
    if not (paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
        paddle.set_flags({"FLAGS_eager_delete_tensor_gb": -1.0})

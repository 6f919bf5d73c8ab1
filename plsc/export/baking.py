"""Pre-processing and unit length as parts of the exported network, so that its caller needs neither."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

from plsc.config import Config
from plsc.errors import ExportError
from plsc.metrics.embeddings import EPSILON

BAKEABLE = ("preprocess", "normalize")


class BakedNetwork(nn.Layer):
    """A backbone with the steps before and after it; equal to plsc/inference/embedding.py but for the resizing.

    With `preprocess` the input is pixels [N, H', W', 3] uint8 of any one size. They are resized to the network's (H, W)
    by cubic interpolation and normalized. Cubic interpolation skips pixels where it shrinks by more than a factor of
    two: give it images near the network's size. Without `preprocess` the input is the backbone's own: normalized
    images [N, 3, H, W] float32.

    With `normalize` the output is embeddings [N, D] of unit length, summed over the image and its mirror image if
    `config.flip` is set. Without `normalize` the output is the backbone's own.

    Args:
        backbone: [N, 3, H, W] -> [N, D].
        config: image_shape, flip, pixel_mean and pixel_std are used.
        bake: any of 'preprocess' and 'normalize', as `parse_bake` returns them.
        bgr: the channels of the pixels are in the order blue, green, red, as OpenCV reads them. Only with 'preprocess'.
    """

    def __init__(self, backbone: nn.Layer, config: Config, *, bake: Sequence[str], bgr: bool) -> None:
        super().__init__()
        self.backbone, self.size = backbone, list(config.image_shape[1:])
        self.preprocess, self.normalize = "preprocess" in bake, "normalize" in bake
        self.flip, self.bgr = config.flip, bgr
        if self.preprocess:
            for name, values in (("mean", config.pixel_mean), ("std", config.pixel_std)):
                self.register_buffer(name, paddle.to_tensor(values, "float32").reshape([1, 3, 1, 1]))
        self.compute_dtype = "float32"

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Pixels or normalized images to embeddings [N, D]; see the class."""
        if self.preprocess:
            images = images.astype(self.compute_dtype).transpose([0, 3, 1, 2])
            if self.bgr:
                images = images.flip(1)
            # Paddle 3.3 cannot run its bilinear resizing under oneDNN; it can run the cubic one.
            images = nn.functional.interpolate(images, size=self.size, mode="bicubic", align_corners=False)
            images = (images - self.mean) / self.std
        embeddings = self.backbone(images)
        if self.normalize:
            if self.flip:
                embeddings = embeddings + self.backbone(images.flip(3))
            # `maximum` would say more, but cannot be traced in the legacy representation.
            embeddings = embeddings / embeddings.norm(axis=1, keepdim=True).clip(min=EPSILON)
        return embeddings


def input_spec(config: Config, bake: Sequence[str]) -> paddle.static.InputSpec:
    """Shape and type of the exported network's input; the batch size is free."""
    if "preprocess" in bake:
        return paddle.static.InputSpec([None, None, None, 3], "uint8", "image")
    return paddle.static.InputSpec([None, *config.image_shape], "float32", "image")


def parse_bake(bake: Sequence[str]) -> tuple[str, ...]:
    """The parts to bake, in the order of `BAKEABLE`. 'normalise', the spelling of PLSC 1.0, counts as 'normalize'.

    Raises:
        ExportError: a part is unknown.
    """
    bake = ["normalize" if part == "normalise" else part for part in bake]
    unknown = set(bake) - set(BAKEABLE)
    if unknown:
        raise ExportError(f"bake: got '{sorted(unknown)[0]}', expected any of {', '.join(BAKEABLE)}")
    return tuple(part for part in BAKEABLE if part in bake)

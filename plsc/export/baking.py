"""Pre-processing and normalization as part of the exported network, so that its caller needs neither."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

from plsc.config import Config
from plsc.errors import ExportError

BAKEABLE = ("preprocess", "normalize")


class BakedNetwork(nn.Layer):
    """A backbone with what surrounds it at inference.

    With `preprocess` it takes pixels [N, H', W', 3] uint8 of any one size, resizes them to the network's (H, W) by
    cubic interpolation and normalizes them; without, images [N, 3, H, W] float32 as the backbone does. Shrinking by
    more than a factor of two so skips pixels: feed images near the network's size.

    With `normalize` it gives embeddings [N, D] of unit length, of the image and its mirror image together
    where `config.flip` is set; without, the backbone's own.

    Args:
        backbone: [N, 3, H, W] -> [N, D].
        config: image_shape, flip, pixel_mean and pixel_std count.
        bake: any of 'preprocess' and 'normalize'.
        bgr: the pixels come as OpenCV reads them, blue first; only with 'preprocess'.
    """

    def __init__(self, backbone: nn.Layer, config: Config, bake: Sequence[str], bgr: bool) -> None:
        super().__init__()
        self.backbone, self.size = backbone, list(config.image_shape[1:])
        self.preprocess, self.normalize = "preprocess" in bake, "normalize" in bake
        self.flip, self.bgr = config.flip, bgr
        if self.preprocess:
            for name, values in (("mean", config.pixel_mean), ("std", config.pixel_std)):
                self.register_buffer(name, paddle.to_tensor(values, "float32").reshape([1, 3, 1, 1]))
        self.compute_dtype = "float32"

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        if self.preprocess:
            images = images.astype(self.compute_dtype).transpose([0, 3, 1, 2])
            if self.bgr:
                images = images.flip(1)
            # Paddle 3.3 cannot run its bilinear resizing under oneDNN; the cubic one it can.
            images = nn.functional.interpolate(images, size=self.size, mode="bicubic", align_corners=False)
            images = (images - self.mean) / self.std
        embeddings = self.backbone(images)
        if self.normalize:
            if self.flip:
                embeddings = embeddings + self.backbone(images.flip(3))
            embeddings = embeddings / (embeddings.norm(axis=1, keepdim=True) + 1e-12)
        return embeddings

    def input_spec(self) -> paddle.static.InputSpec:
        """What the network takes, with the batch free."""
        if self.preprocess:
            return paddle.static.InputSpec([None, None, None, 3], "uint8", "image")
        return paddle.static.InputSpec([None, 3, *self.size], "float32", "image")


def parse_bake(bake: Sequence[str]) -> tuple[str, ...]:
    """The parts to bake, in a fixed order.

    Raises:
        ExportError: one has an unknown name.
    """
    bake = ["normalize" if part == "normalise" else part for part in bake]  # the spelling of PLSC 1.0
    unknown = set(bake) - set(BAKEABLE)
    if unknown:
        raise ExportError(f"bake: got '{sorted(unknown)[0]}', expected any of {', '.join(BAKEABLE)}")
    return tuple(part for part in BAKEABLE if part in bake)

"""Precision policies: the type in which the three matrix products of a fused step multiply. Results are float32.

    logits            r  = W x^T        [B, D] [D, G] -> [B, G]
    feature gradient  dx = e^T W        [G, B] [B, D] -> [G, D]
    row gradients     dw = e x          [b, G] [G, D] -> [b, D]

G gathered batch, D embedding, B classes of a chunk, b of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle

from plsc.errors import ConfigError
from plsc.losses.ops import add_, add_matmul_
from plsc.utils.hints import setter

# The least compute capability of a GPU on which Paddle computes in a type: below, `paddle.amp` turns itself off with a
# warning, and cuBLAS refuses products of bfloat16.
_CAPABILITIES = {"float16": (7, 0), "bfloat16": (8, 0)}


def check_capability(dtype: str) -> None:
    """Raise `ConfigError` where the GPU of this process cannot compute in a half-precision type.

    Args:
        dtype: 'float16' or 'bfloat16'.
    """
    needed, found = _CAPABILITIES[dtype], _capability()
    if found is None or found >= needed:
        return
    remedies = [f"train in float32: {setter('use_fp16', False)}"]
    if dtype == "bfloat16" and found >= _CAPABILITIES["float16"]:
        remedies.insert(0, f"{setter('amp_dtype', 'float16')}")
    raise ConfigError(
        f"amp_dtype is '{dtype}', which needs a GPU of compute capability {_dotted(needed)} or more; this rank's GPU, "
        f"{paddle.device.cuda.get_device_name()}, has {_dotted(found)}; {', or '.join(remedies)}"
    )


def _capability() -> tuple[int, int] | None:
    """Of this process's GPU; None where there is none, or one of AMD, whose numbers mean other things."""
    if not paddle.device.is_compiled_with_cuda() or paddle.device.is_compiled_with_rocm():
        return None
    major, minor = paddle.device.cuda.get_device_capability()
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


class Operand(NamedTuple):
    """A matrix as the products take it.

    Attributes:
        values: the matrix, divided by `scale`.
        scale: factor of the product; None for 1.
    """

    values: paddle.Tensor
    scale: paddle.Tensor | None


class Precision:
    """The policy that multiplies in the operands' own type.

    Attributes:
        needs_half_range: whether exponentials must stay within float16's range, 6e-8 to 65,504.
    """

    needs_half_range = False

    def logits(self, rows: paddle.Tensor, features_t: paddle.Tensor, *, out: paddle.Tensor) -> None:
        """out = r [B, G], of rows [B, D] and the transposed features [D, G]."""
        paddle.matmul(rows, features_t, out=out)

    def feature_gradient(self, e: paddle.Tensor, rows: paddle.Tensor, *, out: paddle.Tensor) -> None:
        """out = dx [G, D], of e [B, G] and rows [B, D]."""
        paddle.matmul(e, rows, transpose_x=True, out=out)

    def operand(self, x: paddle.Tensor) -> Operand:
        """x [G, D] as `add_row_gradient` takes it; made once for all blocks."""
        return Operand(x, None)

    def add_row_gradient(self, gradient: paddle.Tensor, e: paddle.Tensor, *, x: Operand) -> None:
        """gradient += dw [b, D], of e [b, G]."""
        add_matmul_(gradient, e, b=x.values)


class HalfPrecision(Precision):
    """The policy that multiplies float16 or bfloat16 operands and sums in float32, as tensor cores do.

    Logits are multiplied in half precision for float16 only: with the 8 significant bits of bfloat16, a logit of 64 has
    an error of 1/8. On a CPU, where Paddle has no such kernels, rounded operands are multiplied in float32: the same
    numbers, slowly.

    Args:
        dtype: 'float16' or 'bfloat16'.

    Raises:
        ConfigError: another type.
    """

    def __init__(self, dtype: str) -> None:
        if dtype not in ("float16", "bfloat16"):
            raise ConfigError(f"products in '{dtype}'; expected 'float16' or 'bfloat16'")
        self._dtype, self.needs_half_range = dtype, dtype == "float16"

    def logits(self, rows: paddle.Tensor, features_t: paddle.Tensor, *, out: paddle.Tensor) -> None:
        if self.needs_half_range:
            paddle.assign(self._multiply(rows, features_t), out)
        else:
            super().logits(rows, features_t, out=out)

    def feature_gradient(self, e: paddle.Tensor, rows: paddle.Tensor, *, out: paddle.Tensor) -> None:
        paddle.assign(self._multiply(e, rows, transpose_x=True), out)

    def operand(self, x: paddle.Tensor) -> Operand:
        # The probability of one class in a million underflows in float16, so the largest entry is scaled to 1.
        largest = paddle.clip(x.abs().max(), min=1e-30)
        return Operand(x / largest, largest)

    def add_row_gradient(self, gradient: paddle.Tensor, e: paddle.Tensor, *, x: Operand) -> None:
        add_(gradient, self._multiply(e, x.values) * x.scale)

    def _multiply(self, a: paddle.Tensor, b: paddle.Tensor, *, transpose_x: bool = False) -> paddle.Tensor:
        a, b = a.astype(self._dtype), b.astype(self._dtype)
        if a.place.is_cpu_place():
            product = paddle.matmul(a.astype("float32"), b.astype("float32"), transpose_x).astype(self._dtype)
        else:
            product = paddle.matmul(a, b, transpose_x)
        return product.astype("float32")

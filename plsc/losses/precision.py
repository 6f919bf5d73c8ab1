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
from plsc.losses.ops import add_matmul_, multiply
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


class Factor(NamedTuple):
    """A matrix of a product.

    Attributes:
        full: as it is, float32 or float64.
        cast: in the type that the policy multiplies in; `full` itself where that is the same.
    """

    full: paddle.Tensor
    cast: paddle.Tensor


class Operand(NamedTuple):
    """The matrix x of the row gradients, as the products take it.

    Attributes:
        values: the matrix, divided by `scale`.
        scale: factor of the product; None for 1.
    """

    values: paddle.Tensor
    scale: paddle.Tensor | None


class Precision:
    """The policy that multiplies in the operands' own type.

    Attributes:
        is_half: whether `cast` rounds to a type of half the size.
        needs_half_range: whether exponentials must stay within float16's range, 6e-8 to 65,504.
    """

    is_half = False
    needs_half_range = False

    def cast(self, matrix: paddle.Tensor) -> paddle.Tensor:
        """The matrix in the type of the products."""
        return matrix

    def factor(self, matrix: paddle.Tensor, kept: paddle.Tensor | None = None) -> Factor:
        """The matrix for several products, cast once.

        Args:
            matrix: of the products.
            kept: the same numbers in a smaller type, where they are kept so.
        """
        return Factor(matrix, self.cast(matrix))

    def logits(self, rows: Factor, features_t: Factor, *, out: paddle.Tensor | None = None) -> paddle.Tensor:
        """r [B, G], of rows [B, D] and the transposed features [D, G]; in `out`, where that is given."""
        return _matmul(rows.full, features_t.full, out=out)

    def feature_gradient(self, e: paddle.Tensor, rows: Factor, *, out: paddle.Tensor) -> paddle.Tensor:
        """dx [G, D], of e [B, G] as `cast` returned it and rows [B, D]; `out` may be used for it."""
        return _matmul(e, rows.full, transpose_x=True, out=out)

    def spread(self, e: paddle.Tensor, factor: paddle.Tensor | None) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """(e, factor) with e as cast, and a factor [G] of its columns that is still to be multiplied with x, or None.

        A product with x [G, D] costs less than one with e [B, G].
        """
        return e, factor

    def operand(self, x: paddle.Tensor) -> Operand:
        """x [G, D] as the row gradients take it."""
        return Operand(x, None)

    def row_gradient(self, e: paddle.Tensor, x: Operand) -> paddle.Tensor:
        """dw [b, D], of e [b, G] as cast."""
        return _matmul(e, x.values)

    def add_row_gradient(self, gradient: paddle.Tensor, e: paddle.Tensor, *, x: Operand) -> None:
        """gradient += dw [b, D], of e [b, G] as cast."""
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

    is_half = True

    def __init__(self, dtype: str) -> None:
        if dtype not in ("float16", "bfloat16"):
            raise ConfigError(f"products in '{dtype}'; expected 'float16' or 'bfloat16'")
        self._dtype, self.needs_half_range = dtype, dtype == "float16"

    def cast(self, matrix: paddle.Tensor) -> paddle.Tensor:
        return matrix.astype(self._dtype)

    def factor(self, matrix: paddle.Tensor, kept: paddle.Tensor | None = None) -> Factor:
        if kept is not None and self._dtype == "bfloat16" and kept.dtype == paddle.bfloat16:
            return Factor(matrix, kept)
        return super().factor(matrix)

    def logits(self, rows: Factor, features_t: Factor, *, out: paddle.Tensor | None = None) -> paddle.Tensor:
        if not self.needs_half_range:
            return super().logits(rows, features_t, out=out)
        return self._multiply(rows.cast, features_t.cast).astype("float32")

    def feature_gradient(self, e: paddle.Tensor, rows: Factor, *, out: paddle.Tensor) -> paddle.Tensor:
        return self._multiply(e, rows.cast, transpose_x=True).astype("float32")

    def spread(self, e: paddle.Tensor, factor: paddle.Tensor | None) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        # In float16 the factor, which has half the logarithm of the total, balances the ranges of e and of x.
        if factor is None or not self.needs_half_range:
            return e, factor
        if e.place.is_cpu_place():
            return multiply(e.astype("float32"), self.cast(factor).astype("float32")).astype(self._dtype), None
        return multiply(e, self.cast(factor)), None

    def operand(self, x: paddle.Tensor) -> Operand:
        # The probability of one class in a million underflows in float16, so the largest entry is scaled to 1.
        largest = paddle.clip(x.abs().max(), min=1e-30)
        return Operand(self.cast(x / largest), largest)

    def row_gradient(self, e: paddle.Tensor, x: Operand) -> paddle.Tensor:
        return self._multiply(e, x.values).astype("float32") * x.scale

    def add_row_gradient(self, gradient: paddle.Tensor, e: paddle.Tensor, *, x: Operand) -> None:
        gradient.add_(self.row_gradient(e, x))

    def _multiply(self, a: paddle.Tensor, b: paddle.Tensor, *, transpose_x: bool = False) -> paddle.Tensor:
        if a.place.is_cpu_place():
            return paddle.matmul(a.astype("float32"), b.astype("float32"), transpose_x).astype(self._dtype)
        return paddle.matmul(a, b, transpose_x)


def _matmul(
    a: paddle.Tensor, b: paddle.Tensor, *, transpose_x: bool = False, out: paddle.Tensor | None = None
) -> paddle.Tensor:
    if out is None:
        return paddle.matmul(a, b, transpose_x)
    paddle.matmul(a, b, transpose_x, out=out)
    return out

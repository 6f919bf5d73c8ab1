"""The three matrix products of a step: in the operands' own type, or in half precision with float32 results.

    logits      r  = W x^T        [B, D] [D, G] -> [B, G]
    features    dx = e^T W        [G, B] [B, D] -> [G, D]
    rows        dw = e x          [b, G] [G, D] -> [b, D]

G gathered batch, D embedding, B classes of a chunk, b of a block.
"""

from __future__ import annotations

import paddle

from plsc.errors import ConfigError

_C = paddle._C_ops
Operand = tuple[paddle.Tensor, paddle.Tensor | None]  # a factor, and what its product lacks


class Products:
    """In the operands' own type.

    Attributes:
        narrow: whether exponentials must stay within float16's range, 6e-8 to 65,504.
    """

    narrow = False

    def logits(self, rows: paddle.Tensor, transposed: paddle.Tensor, out: paddle.Tensor) -> None:
        """out = r, of rows [B, D] and the features [D, G]."""
        paddle.matmul(rows, transposed, out=out)

    def features(self, e: paddle.Tensor, rows: paddle.Tensor, out: paddle.Tensor) -> None:
        """out = dx, of e [B, G] and rows [B, D]."""
        paddle.matmul(e, rows, transpose_x=True, out=out)

    def operand(self, x: paddle.Tensor) -> Operand:
        """The features [G, D] as `add_rows` takes them, once for all blocks."""
        return x, None

    def add_rows(self, gradient: paddle.Tensor, e: paddle.Tensor, x: Operand) -> None:
        """gradient += dw, [b, D], of e [b, G]."""
        _C.addmm_(gradient, e, x[0], 1.0, 1.0)


class HalfProducts(Products):
    """Operands in float16 or bfloat16, sums in float32, as tensor cores compute them.

    Logits are made in half precision for float16 only: of 8 bits, bfloat16's, a logit of 64 has an error of 1/8.
    On a CPU, where Paddle has no such kernels, rounded operands are multiplied in float32: the same numbers, slowly.

    Args:
        dtype: 'float16' or 'bfloat16'.

    Raises:
        ConfigError: another type.
    """

    def __init__(self, dtype: str) -> None:
        if dtype not in ("float16", "bfloat16"):
            raise ConfigError(f"products in '{dtype}'; expected 'float16' or 'bfloat16'")
        self._dtype, self.narrow = dtype, dtype == "float16"

    def logits(self, rows: paddle.Tensor, transposed: paddle.Tensor, out: paddle.Tensor) -> None:
        if self.narrow:
            paddle.assign(self._multiply(rows, transposed), out)
        else:
            super().logits(rows, transposed, out)

    def features(self, e: paddle.Tensor, rows: paddle.Tensor, out: paddle.Tensor) -> None:
        paddle.assign(self._multiply(e, rows, transpose_x=True), out)

    def operand(self, x: paddle.Tensor) -> Operand:
        # A probability of one in a million classes is nothing in float16, so the largest becomes 1.
        unit = paddle.clip(x.abs().max(), min=1e-30)
        return x / unit, unit

    def add_rows(self, gradient: paddle.Tensor, e: paddle.Tensor, x: Operand) -> None:
        _C.add_(gradient, self._multiply(e, x[0]) * x[1])

    def _multiply(self, a: paddle.Tensor, b: paddle.Tensor, transpose_x: bool = False) -> paddle.Tensor:
        a, b = a.astype(self._dtype), b.astype(self._dtype)
        if a.place.is_cpu_place():
            product = paddle.matmul(a.astype("float32"), b.astype("float32"), transpose_x).astype(self._dtype)
        else:
            product = paddle.matmul(a, b, transpose_x)
        return product.astype("float32")

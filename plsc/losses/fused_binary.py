"""The fused step of the binary losses; `plsc.losses.margins.binary` has the equations and the letters.

It differs from that of softmax (`plsc.losses.fused`) in three places. The coefficient e of the products is, with
sigma = 1 / (1 + exp(-u)),

    e_cn = sigma(u_cn) g'(cos_cn) / |w_c|

others_n is the sum of log(1 + exp(u_cn)), which e has no part in; and no e depends on the sum, so there is no shift
that ranks must agree on. The factor of the products is omega_n Q k / G, and the bias has the gradient

    dL/db = 1/G sum_n omega_n (Q sum_c sigma(u_cn) - P sigma(-p_n))

For float16 products e is divided by its greatest value of each sample so far, as by a shift; the first pass's gradient
follows it.
"""

from __future__ import annotations

from typing import Any

import paddle

from plsc.errors import ConfigError
from plsc.losses.exponentials import Exponentials, Products, RowTerms
from plsc.losses.fused import Ending, FusedSoftmax
from plsc.losses.logit_ops import RowNumbers, logistic_
from plsc.losses.margins.binary import BinaryMargin
from plsc.losses.ops import add_, matmul, multiply_, scale_rows
from plsc.losses.passes import FirstPass
from plsc.losses.reference import Targets
from plsc.losses.shard import Shard
from plsc.losses.shift import ConstantShift

_LEAST_RANGE = 1e-20


class Sigmoids(Exponentials):
    """Makes e of each chunk from sigmoids.

    Args:
        needs_range: keep e at 1 or less.
        options: of `Exponentials`.

    Attributes:
        shares: [G], the sums of sigma over the chunks so far.
        range: [G], what the last e was divided by; None for 1.
    """

    def __init__(self, *, needs_range: bool, **options: Any) -> None:
        super().__init__(shift=ConstantShift(1, options["features"].dtype), **options)
        samples, dtype = self.features.shape[:1], self.features.dtype
        self.shares = paddle.zeros(samples, dtype)
        self.range = paddle.full(samples, _LEAST_RANGE, dtype) if needs_range else None
        self._ranges: list[paddle.Tensor] = []

    def first(self, k: int, products: Products, *, total: paddle.Tensor, gradient: paddle.Tensor) -> paddle.Tensor:
        logits, slope, which = self._exponents(k, products)
        shares, sums = logistic_(logits, with_sum=True)
        ones = paddle.ones(sums.shape[:1], sums.dtype)
        add_(total, matmul(ones, sums))
        add_(self.shares, matmul(ones, shares))
        return self._follow(self._by_row(k, *self._coefficients(k, shares, slope, which)), gradient)

    def as_first(self, k: int, products: Products) -> paddle.Tensor:
        e = super().as_first(k, products)
        return e if self.range is None else e / self._ranges[k]

    def factor(self, k: int) -> paddle.Tensor | None:
        return None if self.range is None else self._ranges[k] / self.range

    def _made_again(self, k: int, products: Products, *, at: int | None) -> tuple[paddle.Tensor, RowNumbers | None]:
        logits, slope, which = self._exponents(k, products)
        return self._coefficients(k, logistic_(logits, with_sum=False)[0], slope, which)

    def _coefficients(
        self, k: int, shares: paddle.Tensor, slope: paddle.Tensor | None, which: RowNumbers | None
    ) -> tuple[paddle.Tensor, RowNumbers | None]:
        e = shares if slope is None else multiply_(slope, shares)
        if which is not None:
            return e, which
        inverse = self.rows.inverse[k]
        return scale_rows(e, scale=inverse, offset=paddle.zeros_like(inverse)), None

    def _follow(self, e: paddle.Tensor, gradient: paddle.Tensor) -> paddle.Tensor:
        if self.range is None:
            return e
        greatest = paddle.maximum(self.range, e.max(axis=0))
        gradient.multiply_((self.range / greatest).unsqueeze(1))
        self.range = greatest
        self._ranges.append(greatest)
        return e / greatest


class FusedBinary(FusedSoftmax):
    """A binary loss over one shard of the classes, chunk by chunk.

    Args:
        margin: a `BinaryMargin`, whose scale counts.
        options: of `FusedSoftmax`.
    """

    def __init__(self, margin: Any, scale: float, **options: Any) -> None:
        if not isinstance(margin, BinaryMargin):
            raise ConfigError(f"margin {type(margin).__name__} has no bias, scale and weights of a binary loss")
        self._binary: BinaryMargin = margin
        as_margin: Any = margin
        super().__init__(as_margin, self._binary.scale, **options)

    def _start(self, shard: Shard, x: paddle.Tensor, *, targets: Targets, psi: paddle.Tensor) -> Exponentials:
        terms = self._terms(shard, x, targets=targets, psi=psi, shift=0.0)
        bias = self._binary.bias.astype(x.dtype).expand([shard.size])
        rows: RowTerms = terms["rows"]
        of_cosine = rows.of_cosine._replace(offset=bias[:1])
        terms["rows"] = rows._replace(offset=shard.split_by_chunk(bias), of_cosine=of_cosine)
        return Sigmoids(needs_range=self._precision.needs_half_range, **terms)

    def _end(self, work: Exponentials, first: FirstPass, *, logit: paddle.Tensor, weights: paddle.Tensor) -> Ending:
        assert isinstance(work, Sigmoids)
        samples, binary = logit.shape[0], self._binary
        sums = self._reducer.all_reduce_sum(paddle.stack([first.total, logit, work.shares]))
        total, logit, shares = paddle.unbind(sums)
        positive, negative = binary.positive_weight, binary.negative_weight
        missing, own = logistic_(-(logit + binary.bias.astype(logit.dtype)), with_sum=True)
        factor = weights * (negative * self._scale / samples)
        by_psi = missing * (-positive / negative)
        if work.range is not None:
            factor, by_psi = factor * work.range, by_psi / work.range
        by_bias = (weights * (negative * shares - positive * missing)).sum() / samples
        return Ending(positive * own + negative * total, by_psi, factor, by_bias)

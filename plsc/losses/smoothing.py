"""Label smoothing without a second look at the logits.

A part epsilon of each label is spread evenly over all classes. With z_yn the logit with margin, and C classes,

    L_n = logsumexp_c(z_cn) - (1 - epsilon) z_yn - epsilon / C sum_c z_cn
        = [logsumexp_c(z_cn) - z_yn] + epsilon (z_yn - u_n / C),        u_n = sum_c z_cn

The first part is the loss without smoothing. Of the second, the sum over the classes is a product with one vector:

    u_n = s <x_n, W> + z_yn - s cos(x_n, w_y),        W = sum_c w_c / |w_c|

so it takes a sum over the rows in the first pass, and one all-reduce of [3, G] numbers. With k_n = omega_n v_n / G,
the weight of the sample in the gradients, its gradients are

    by x_n    s k_n [(epsilon - epsilon / C) dpsi w_y / |w_y| + epsilon / C w_y / |w_y| - epsilon / C W]
    by w_c    q / |w_c|, q = -epsilon / C s sum_n k_n x_n, and for its own samples s k_n [the same factor] x_n / |w_y|

from which the parts along x_n and w_c are removed, as in `plsc.losses.fused`; `plsc.losses.spread` adds those by the
rows. Where other classes have logits that are changed, or several centers each, the label is spread over the plain
cosines of all centers; where classes are sampled, over those of the sample.

Source: Rethinking the Inception Architecture for Computer Vision, Szegedy et al., CVPR 2016, section 7.

G gathered batch, D embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import paddle

from plsc.losses.exponentials import Exponentials
from plsc.losses.ops import matmul
from plsc.losses.reference import Reducer
from plsc.losses.row_sums import RowSums
from plsc.losses.spread import Spread


class OwnClass(NamedTuple):
    """Of each sample's own class, all [G] but `vectors`; of meaning where `owned` is 1.

    Attributes:
        row: its row in this shard.
        owned: 1 where the class is one of this shard's, else 0.
        vectors: [G, D], w_y.
        product: <w_y, x_n>.
        plain: the logit without margin.
        logit: z_yn.
        slope: (d psi / d cos) / |w_y|; 1 for softmax.
        inverse_norm: 1 / |w_y|; 1 for softmax.
    """

    row: paddle.Tensor
    owned: paddle.Tensor
    vectors: paddle.Tensor
    product: paddle.Tensor
    plain: paddle.Tensor
    logit: paddle.Tensor
    slope: paddle.Tensor
    inverse_norm: paddle.Tensor


class Smoothing(NamedTuple):
    """What smoothing adds.

    Attributes:
        losses: [G], to the loss of each sample.
        gradient: [G, D], to the gradient by the directions of the features; partial over shards.
        by_psi: [G], to the derivative of L by psi.
        spread: to the gradients by the rows and by the bias.
    """

    losses: paddle.Tensor
    gradient: paddle.Tensor
    by_psi: paddle.Tensor
    spread: Spread


def smooth(
    epsilon: float,
    work: Exponentials,
    *,
    row_sum: paddle.Tensor,
    own: OwnClass,
    weights: paddle.Tensor,
    scale: float,
    reducer: Reducer,
) -> Smoothing:
    """What smoothing adds to a loss.

    Args:
        epsilon: the part of a label that is spread, 0 to 1.
        work: of the chunks.
        row_sum: W [D] of this shard.
        own: of the own classes.
        weights: [G], omega_n v_n.
        scale: s; 1 for softmax.
        reducer: over the ranks.
    """
    x, shard = work.features, work.shard
    samples = x.shape[0]
    spread = matmul(x, row_sum) * scale + (own.logit - own.plain) * own.owned
    if shard.bias is not None:
        spread = spread + shard.bias.sum()
    parts = paddle.stack([own.logit * own.owned, spread, paddle.full([samples], float(shard.size), x.dtype)])
    logit, spread, count = paddle.unbind(reducer.all_reduce_sum(parts))
    share = epsilon / count
    losses = epsilon * logit - share * spread
    # With a single class there is nothing to spread; without the factor, roundings would be left.
    factor = weights * scale / samples * (count > 1.0).astype(x.dtype)
    by_psi = factor * (epsilon - share)
    by_own = (by_psi * own.slope + factor * share * own.inverse_norm) * own.owned
    everywhere = factor * share
    gradient = by_own.unsqueeze(1) * own.vectors - everywhere.unsqueeze(1) * row_sum

    along = None
    if work.rows.radial is not None:
        along = (by_own * own.product * own.inverse_norm * own.inverse_norm).unsqueeze(1) * own.vectors
    added = Spread(
        -matmul(everywhere, x),
        work.rows.inverse,
        is_unit=along is not None,
        sums=RowSums(own.row),
        own=by_own.unsqueeze(1) * x,
        along=along,
        bias=None if shard.bias is None else (-everywhere.sum(), by_own),
    )
    return Smoothing(losses, gradient, by_psi, added)

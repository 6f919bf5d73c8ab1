"""Operations on the cosines and logits [B, G] of classes that are not the sample's own. See `plsc.losses.negatives`.

Each function is several passes over a chunk. In the cache of a CPU, NumPy needs a third of Paddle's time for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import paddle

from plsc.losses.ops import Array, host_view, multiply_, scale_rows, subtract_
from plsc.utils.loops import compiled_loops

Mask: TypeAlias = "Array | paddle.Tensor"
RowNumbers: TypeAlias = "Array | paddle.Tensor"
_DROPPED = 1e20  # subtracted from a logit, whose exponential is then 0


def above(values: paddle.Tensor, limit: float) -> Mask:
    """[B, G] bool: where values are above a limit."""
    view = host_view(values)
    found: Mask = (values if view is None else view) > limit
    return found


def greatest(
    rows: paddle.Tensor,
    *,
    scale: paddle.Tensor,
    group: int,
    out: tuple[paddle.Tensor, RowNumbers] | None = None,
) -> tuple[paddle.Tensor, RowNumbers]:
    """Of each `group` consecutive rows of `rows` [B, G] times scale [B] the greatest, [B / group, G].

    Also its number among them, like it; at ties the first row is the greatest. `out` is an earlier result,
    whose memory may be used.
    """
    view = host_view(rows)
    if view is None:
        scaled = scale_rows(rows, scale=scale, offset=paddle.zeros_like(scale))
        return _greatest_of(paddle.unbind(scaled.reshape([-1, group, rows.shape[1]]), axis=1))
    groups, factors = view.reshape(-1, group, view.shape[1]), np.from_dlpack(scale).reshape(-1, group)
    if out is None:
        shape = [len(groups), view.shape[1]]
        out = paddle.empty(shape, rows.dtype), np.empty(shape, np.uint8)
    best, which = out
    best_view = np.from_dlpack(best)
    loops = compiled_loops()
    if loops is not None:
        loops.greatest(groups, factors, best_view, which)
        return best, which
    for tile in _tiles(len(groups), group):
        scaled_rows = groups[tile] * factors[tile, :, None]
        top, number = best_view[tile], which[tile]
        top[:], number[:] = scaled_rows[:, 0], 0
        for k in range(1, group):
            np.putmask(number, scaled_rows[:, k] > top, np.uint8(k))
            np.maximum(scaled_rows[:, k], top, out=top)
    return best, which


def spread_over(
    values: paddle.Tensor, which: RowNumbers, *, scale: paddle.Tensor, out: paddle.Tensor | None = None
) -> paddle.Tensor:
    """values [B / group, G] times scale [B] in the rows that `greatest` found, 0 in the others: [B, G].

    `out` is memory for it that may be used.
    """
    rows, (classes, width) = scale.shape[0], values.shape
    if not isinstance(which, np.ndarray):
        kept = paddle.stack([which == k for k in range(rows // classes)], axis=1).astype(values.dtype)
        multiply_(multiply_(kept, scale.reshape([classes, -1, 1])), values.unsqueeze(1))
        return kept.reshape([rows, width])
    out = paddle.empty([rows, width], values.dtype) if out is None else out
    groups, factors, given = (
        np.from_dlpack(out).reshape(classes, -1, width),
        np.from_dlpack(scale).reshape(classes, -1),
        np.from_dlpack(values),
    )
    loops = compiled_loops()
    if loops is not None:
        loops.spread_over(given, which, factors, groups)
        return out
    groups[:] = 0
    for tile in _tiles(classes, groups.shape[1]):
        for k in range(groups.shape[1]):
            np.multiply(given[tile], factors[tile, k, None], out=groups[tile, k], where=which[tile] == k)
    return out


def row_products_of_groups(
    rows: paddle.Tensor, others: paddle.Tensor, *, weights: paddle.Tensor, out: paddle.Tensor
) -> paddle.Tensor:
    """[B]: sum_n rows_n others_n weights_n of rows [B, G], others [B / group, G] (each for its group), weights [G].

    `out` is memory for it that may be used.
    """
    view, groups = host_view(rows), [*others.shape[:1], -1, *others.shape[1:]]
    if view is None:
        return (rows.reshape(groups) * (others * weights).unsqueeze(1)).sum(axis=2).flatten()
    view, sums = view.reshape(groups), np.from_dlpack(out).reshape(groups[:2])
    loops = compiled_loops()
    if loops is not None:
        loops.weighted_products(view, np.from_dlpack(others), np.from_dlpack(weights), sums)
    else:
        np.einsum("ckn,cn->ck", view, np.multiply(np.from_dlpack(others), np.from_dlpack(weights)), out=sums)
    return out


def _greatest_of(parts: Sequence[paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Element by element the greatest of the parts, and its number; the first at ties."""
    best, number = parts[0], paddle.zeros(parts[0].shape, "int32")
    for k, part in enumerate(parts[1:], 1):
        number = paddle.where(part > best, paddle.full_like(number, k), number)
        best = paddle.maximum(part, best)
    return best, number.astype("uint8")


def _tiles(classes: int, group: int) -> list[slice]:
    """Ranges of classes whose rows, with what is made of them, stay in the first two levels of the cache."""
    step = max(1, 256 // group)
    return [slice(start, min(start + step, classes)) for start in range(0, classes, step)]


def _mark_others(groups: Array, best: Array, *, out: Array) -> None:
    """out = all of groups [M, group, G] but the first that equals the best [M, 1, G]."""
    np.less(groups, best, out=out)
    if np.count_nonzero(out) != (groups.shape[1] - 1) * best.size:  # ties, which are rare
        np.not_equal(np.arange(groups.shape[1])[:, None], (~out).argmax(axis=1)[:, None], out=out)


def column_maxima(values: paddle.Tensor) -> paddle.Tensor:
    """[G]: the maximum of each column of [B, G]. In the cache NumPy needs a tenth of Paddle's time."""
    view = host_view(values)
    return values.max(axis=0) if view is None else paddle.to_tensor(view.max(axis=0))


def subtract_row_(values: paddle.Tensor, row: paddle.Tensor) -> paddle.Tensor:
    """values [B, G] minus row [G], in place."""
    view = host_view(values)
    if view is None:
        return subtract_(values, row)
    view -= np.from_dlpack(row)
    return values


def all_but_greatest(values: paddle.Tensor, *, group: int) -> Mask:
    """[B, G] bool: of each `group` consecutive rows all but the greatest, the first one at ties."""
    view = host_view(values)
    if view is not None:
        rows = view.reshape(-1, group, view.shape[1])
        others: Array = np.empty(rows.shape, bool)
        _mark_others(rows, rows.max(axis=1, keepdims=True), out=others)
        return others.reshape(view.shape)
    _, number = _greatest_of(paddle.unbind(values.reshape([-1, group, values.shape[1]]), axis=1))
    return paddle.stack([number != j for j in range(group)], axis=1).reshape(values.shape)


def drop_(values: paddle.Tensor, where: Mask) -> paddle.Tensor:
    """Logits [B, G], in place so low where a mask is true that their exponential is 0."""
    if isinstance(where, paddle.Tensor):
        return subtract_(values, where.astype(values.dtype) * _DROPPED)
    view: Array = np.from_dlpack(values)
    view -= np.multiply(where, _DROPPED, dtype=view.dtype)
    return values


def harden(cosine: paddle.Tensor, *, threshold: paddle.Tensor, t: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(cos (t + cos), t + 2 cos) where cosines [B, G] are above the threshold [G], elsewhere (cos, 1); t is [1]."""
    view = host_view(cosine)
    if view is None:
        hard = (cosine > threshold).astype(cosine.dtype)
        excess = (cosine + (t - 1.0)) * hard
        return cosine * excess + cosine, hard * cosine + excess + 1.0
    (value, excess), (derivative, slope) = _outputs(cosine.shape, cosine.dtype), _outputs(cosine.shape, cosine.dtype)
    with np.errstate(invalid="ignore", over="ignore"):  # the judgment of the step finds it
        hard = view > np.from_dlpack(threshold)
        np.add(view, np.from_dlpack(t) - view.dtype.type(1.0), out=excess)
        excess *= hard
        np.multiply(view, hard, out=slope)
        slope += excess
        slope += 1.0
        excess += 1.0
        excess *= view
    return value, derivative


def half_powers(cosine: paddle.Tensor, *, power: float, plus: float = 0.0) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(2 h^power - 1 + plus, its derivative power h^(power - 1)) of cosines [B, G]; h is (cos + 1) / 2, at least 0."""
    view = host_view(cosine)
    if view is None:
        half = paddle.clip(0.5 * cosine + 0.5, min=0.0)
        lower = half if power == 2.0 else half * half if power == 3.0 else half ** (power - 1.0)
        return 2.0 * lower * half + (plus - 1.0), power * lower
    (value, lifted), (derivative, lower) = _outputs(cosine.shape, cosine.dtype), _outputs(cosine.shape, cosine.dtype)
    np.multiply(view, 0.5, out=lifted)
    lifted += 0.5
    np.maximum(lifted, 0.0, out=lifted)
    np.power(lifted, power - 1.0, out=lower) if power != 3.0 else np.multiply(lifted, lifted, out=lower)
    lower *= power
    lifted *= lower
    lifted *= 2.0 / power
    lifted += plus - 1.0
    return value, derivative


def logistic_(values: paddle.Tensor, *, with_sum: bool) -> tuple[paddle.Tensor, paddle.Tensor]:
    """(1 / (1 + exp(-values)), log(1 + exp(values))) of logits [B, G], which are overwritten.

    The second is of meaning only if it was asked for.
    """
    view = host_view(values)
    if view is None or view.max(initial=0.0) > 80.0:  # whose exponential may be beyond float32
        low = paddle.exp(-values.abs())
        share = 1.0 / (1.0 + low)
        total = paddle.clip(values, min=0.0) + paddle.log1p(low) if with_sum else low
        return paddle.where(values >= 0.0, share, low * share), total
    np.exp(view, out=view)
    total = values
    if with_sum:
        total, sums = _outputs(values.shape, values.dtype)
        np.log1p(view, out=sums)
    view /= view + 1.0
    return values, total


def _outputs(shape: Sequence[int], dtype: paddle.dtype) -> tuple[paddle.Tensor, Array]:
    """A new tensor in host memory, and its memory as an array."""
    tensor = paddle.empty(shape, dtype)
    return tensor, np.from_dlpack(tensor)

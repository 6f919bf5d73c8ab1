"""Private Paddle operators and NumPy fast paths, each behind a signature that names its arguments.

A million classes have eight thousand blocks of rows, so what a call costs counts: the operators in `paddle._C_ops` are
those of `paddle.*` without the argument checks, which take as long as the operator does on a small block. They take
their arguments by position and change between versions of Paddle, so no other file calls them.

NumPy is used where an operation takes a tenth of a step or more and the tensor lies in host memory. On one core,
float32, a shard of 500,000 x 512 and 128 samples: the exponentials of a pass take 25 ms in NumPy (its AVX-512 kernel)
and 55 ms in Paddle 3.3; squared row norms 12 to 30 ms against 41 ms, with no temporary. NumPy works on the tensor's own
memory, through DLPack. Elsewhere Paddle's operators run: on GPUs, and with NumPy before 2.1, whose DLPack views are
read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
import paddle

_C = paddle._C_ops
_matmul, _addmm_, _exp_ = _C.matmul, _C.addmm_, _C.exp_
_affine_channel, _reshape, _split = _C.affine_channel, _C.reshape, _C.split
_index_select, _scatter_ = _C.index_select, _C.scatter_
_sgd_, _momentum_, _adamw_ = _C.sgd_, _C.momentum_, _C.adamw_
_squared_l2_norm = _C.squared_l2_norm
_check_finite_and_unscale_ = _C.check_finite_and_unscale_

# Element by element, of two tensors; a trailing underscore: into the first.
add, add_, subtract_ = _C.add, _C.add_, _C.subtract_
multiply, multiply_ = _C.multiply, _C.multiply_

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
SquaredNorms: TypeAlias = "Array | paddle.Tensor"
_HOST_DTYPES = (paddle.float32, paddle.float64)
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def no_grad(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Decorator: `function` under `paddle.no_grad`, with its type kept."""
    decorated: Callable[_Parameters, _Result] = paddle.no_grad()(function)
    return decorated


def host_view(tensor: paddle.Tensor) -> Array | None:
    """The tensor's memory as a writable array; None for a tensor on a GPU, of another type, or with an old NumPy."""
    if not tensor.place.is_cpu_place() or tensor.dtype not in _HOST_DTYPES:
        return None
    view = np.from_dlpack(tensor.detach())
    return view if view.flags.writeable else None


# Products and elementwise operations


def matmul(a: paddle.Tensor, b: paddle.Tensor) -> paddle.Tensor:
    """a @ b."""
    return _matmul(a, b, False, False)


def add_matmul_(target: paddle.Tensor, a: paddle.Tensor, *, b: paddle.Tensor) -> None:
    """target += a @ b, in one operator."""
    _addmm_(target, a, b, 1.0, 1.0)


def scale_rows(rows: paddle.Tensor, *, scale: paddle.Tensor, offset: paddle.Tensor) -> paddle.Tensor:
    """rows [M, K] times scale [M] plus offset [M], as a new tensor.

    Done by `affine_channel`, with one row as one channel: it takes half the time of a broadcast product and sum.
    """
    count, width = rows.shape
    return _reshape(_affine_channel(_reshape(rows, [1, count, 1, width]), scale, offset, "NCHW"), [count, width])


def exp_(tensor: paddle.Tensor) -> paddle.Tensor:
    """e to the tensor, in place."""
    view = host_view(tensor)
    if view is None:
        return _exp_(tensor)
    with np.errstate(over="ignore"):  # the judgment of the step finds it
        np.exp(view, out=view)
    return tensor


# Rows, by range and by index


def flat_rows(tensor: paddle.Tensor) -> paddle.Tensor:
    """[S, K, D] as [S K, D] in the same memory; other tensors as they are."""
    if tensor.ndim != 3:
        return tensor
    classes, group, width = tensor.shape
    # Paddle reshapes no tensor without elements; others keep their memory.
    return tensor.reshape([classes * group, width]) if classes else paddle.zeros([0, width], tensor.dtype)


def split_rows(rows: paddle.Tensor, *, sizes: list[int]) -> Sequence[paddle.Tensor]:
    """Consecutive pieces of so many rows each. Splitting copies, and still takes half the time of slicing."""
    return [rows] if len(sizes) == 1 else _split(rows, sizes, 0)


def add_at_(target: paddle.Tensor, index: paddle.Tensor, *, values: paddle.Tensor) -> None:
    """target.flatten()[index] += values, in place; index and values are [M], and no index occurs twice.

    Paddle's `index_add_` adds atomically on GPUs, and in one thread where FLAGS_cudnn_deterministic is set.
    """
    flat = _reshape(target, [-1])
    _scatter_(flat, index, add(_index_select(flat, index, 0), values), True)


def take_rows(source: paddle.Tensor, index: paddle.Tensor, *, out: paddle.Tensor) -> None:
    """out = source[index], [K, D] of [S, D] by [K] int64. For 100 MB 13 to 19 ms in NumPy, 22 to 28 in Paddle."""
    source_view, out_view = host_view(source), host_view(out)
    if source_view is None or out_view is None:
        paddle.index_select(source, index, out=out)
    else:
        # With mode "raise", the default, NumPy would check the index first and copy twice.
        host_index: Array = np.from_dlpack(index)
        np.take(source_view, host_index, axis=0, out=out_view, mode="clip")


def put_rows(target: paddle.Tensor, index: paddle.Tensor, *, values: paddle.Tensor) -> None:
    """target[index] = values, [K, D] into [S, D] at [K] int64; a row that occurs twice must have equal values.

    `paddle.scatter_` would refuse a parameter, which requires a gradient; the operator does not check.
    """
    if target.dtype == paddle.bfloat16:
        # Paddle's scatter has no bfloat16 kernel on CPU; two numbers are copied as one int32, since D is even.
        target, values = target.view("int32"), values.view("int32")
    _scatter_(target, index, values, True)


def highest(scores: paddle.Tensor, count: int) -> paddle.Tensor:
    """[count] int64, ascending: the indices of the highest of the scores [S].

    For a tenth of 500,000 NumPy takes 4 ms and Paddle 10 ms.
    """
    view = host_view(scores)
    if view is None:
        # Not by `topk`: for one row of millions its GPU kernel uses one block of threads. `argsort` uses all of them.
        return paddle.sort(paddle.argsort(scores)[len(scores) - count :])
    least = np.partition(view, len(view) - count)[len(view) - count]
    found = np.flatnonzero(view >= least)
    if len(found) > count:  # several scores equal the least: leave the first of them out
        found = np.delete(found, np.flatnonzero(view[found] == least)[: len(found) - count])
    return paddle.to_tensor(found)


# Squared norms


@no_grad
def sums_of_squares(tensors: Sequence[paddle.Tensor]) -> paddle.Tensor:
    """[K] float32: of each of K float tensors the sum of the squares of its elements, one pass without a temporary.

    A sum is NaN where an element is NaN, else infinite where an element is, or where the sum is beyond float32.
    """
    sums = [
        _squared_l2_norm(tensor)
        if tensor.dtype == paddle.float32
        # float16 and bfloat16 have no kernel on CPUs; the sum of float64 may be beyond float32.
        else _squared_l2_norm(tensor if tensor.dtype == paddle.float64 else tensor.astype("float32")).astype("float32")
        for tensor in tensors
    ]
    return paddle.concat(sums) if sums else paddle.zeros([0], "float32")


@no_grad
def unscale_(tensors: Sequence[paddle.Tensor], scale: paddle.Tensor) -> paddle.Tensor:
    """Divide tensors by `scale` [1] float32, in place, in one kernel per type.

    Returns:
        [1] bool: whether any element was not finite.
    """
    found = paddle.zeros([1], "bool")
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        # Parameters are float32 under autocast; the operator wants the scale in the type of the sums.
        own = scale.astype("float64") if dtype == paddle.float64 else scale
        found = paddle.logical_or(found, _check_finite_and_unscale_(same, own)[1])
    return found


def squared_norms(rows: paddle.Tensor, view: Array | None, *, ones: paddle.Tensor) -> SquaredNorms:
    """[M]: squared norms of rows [M, D]; an array if `view` is given, else a tensor.

    Args:
        rows: [M, D].
        view: `host_view(rows)`.
        ones: [D] ones; a product with them is several times faster than Paddle's sum.
    """
    if view is None:
        return _matmul(multiply(rows, rows), ones, False, False)
    with np.errstate(over="ignore"):  # the judgment of the step finds it
        # NumPy 2.0 has vecdot, which needs half the time.
        found: Array = np.vecdot(view, view) if hasattr(np, "vecdot") else np.einsum("ij,ij->i", view, view)
    return found


def row_products(a: paddle.Tensor, b: paddle.Tensor, *, ones: paddle.Tensor) -> paddle.Tensor:
    """[M]: the scalar product of each row of a [M, D] with that of b [M, D]; ones: [D]."""
    a_view, b_view = host_view(a), host_view(b)
    if a_view is None or b_view is None or not hasattr(np, "vecdot"):
        return _matmul(multiply(a, b), ones, False, False)
    with np.errstate(over="ignore", invalid="ignore"):  # the judgment of the step finds it
        return paddle.to_tensor(np.vecdot(a_view, b_view))


def concat_norms(parts: list[SquaredNorms]) -> paddle.Tensor:
    """One tensor of what `squared_norms` returned; all parts are arrays, or all are tensors."""
    return paddle.to_tensor(np.concatenate(parts)) if isinstance(parts[0], np.ndarray) else paddle.concat(parts)


# Optimizers: the operators of `paddle.optimizer`, in place on views of a parameter, which no optimizer class accepts


def sgd_(rows: paddle.Tensor, gradient: paddle.Tensor, *, learning_rate: paddle.Tensor) -> None:
    """rows -= learning_rate * gradient."""
    _sgd_(rows, learning_rate, gradient, None, False)  # no master weights


def momentum_(
    rows: paddle.Tensor,
    gradient: paddle.Tensor,
    *,
    velocity: paddle.Tensor,
    learning_rate: paddle.Tensor,
    momentum: float,
) -> None:
    """velocity = momentum * velocity + gradient; rows -= learning_rate * velocity."""
    # No master weights, Nesterov, regularization, multi-precision; gradients are not rescaled.
    _momentum_(rows, gradient, velocity, learning_rate, None, momentum, False, "", 0.0, False, 1.0)


def adamw_(
    rows: paddle.Tensor,
    gradient: paddle.Tensor,
    *,
    moment1: paddle.Tensor,
    moment2: paddle.Tensor,
    beta1_power: paddle.Tensor,
    beta2_power: paddle.Tensor,
    learning_rate: paddle.Tensor,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> None:
    """One step of AdamW on rows and both moments; the powers of beta are those of this step, and stay."""
    _adamw_(
        rows,
        gradient,
        learning_rate,
        moment1,
        moment2,
        None,  # the greatest second moment, of AMSGrad
        beta1_power.clone(),  # the operator multiplies the powers in place, and other rows still need them
        beta2_power.clone(),
        None,  # master weights
        None,  # whether to skip the update
        beta1,
        beta2,
        epsilon,
        1.0,  # ratio of this parameter's learning rate
        decay,
        True,  # with decay
        False,  # lazy mode
        1000,  # smallest size for threads in lazy mode
        False,  # multi-precision
        False,  # global beta powers
        False,  # AMSGrad
    )

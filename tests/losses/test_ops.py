"""The operators against their definitions, in host memory and as they run elsewhere."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses import ops


@pytest.fixture(params=["host memory", "elsewhere"])
def place(request, monkeypatch):
    """With NumPy on the tensor's memory, and without, as on a GPU."""
    if request.param == "elsewhere":
        monkeypatch.setattr(ops, "host_view", lambda tensor: None)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_sums_of_squares_show_what_is_not_finite(dtype):
    """As one number per tensor, for parameters, in all shapes; nothing is recorded for autograd."""
    finite = paddle.to_tensor([[1.0, -2.0], [3.0, 0.0]], stop_gradient=False).astype(dtype)
    values = [float("nan"), float("inf"), -float("inf")]
    bad = [paddle.to_tensor([1.0, value, 2.0]).astype(dtype) for value in values]
    found = ops.sums_of_squares([finite, paddle.zeros([0], dtype), paddle.full([], 2.0, dtype), *bad])
    np.testing.assert_array_equal(found, [14.0, 0.0, 4.0, float("nan"), float("inf"), float("inf")])
    assert found.stop_gradient and found.dtype == paddle.float32
    assert ops.sums_of_squares([]).shape == [0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_tensors_are_unscaled_in_place_and_judged_together(dtype, bad, which):
    values = [np.array([[1.0, -2.0], [3.0, 0.0]]), np.array([8.0])]
    if bad is not None:
        values[which].flat[0] = bad
    # A tensor of the other type, so that both groups are judged.
    tensors = [paddle.to_tensor(values[0], dtype), paddle.to_tensor(values[1], "float32")]
    assert ops.unscale_(tensors, paddle.to_tensor([4.0])).item() == (bad is not None)
    if bad is None:
        for tensor, value in zip(tensors, values):
            np.testing.assert_array_equal(tensor.numpy(), value / 4)


@pytest.mark.parametrize("value, is_finite", [(1.8e19, True), (1.9e19, False), (1e30, False)])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_sum_of_squares_is_infinite_where_a_square_is(value, is_finite, size):
    tensor = paddle.zeros([size])
    tensor[size // 2] = value
    assert np.isfinite(ops.sums_of_squares([tensor]).item()) == is_finite


@pytest.mark.parametrize("count", [1, 4, 9, 10])
def test_of_equal_scores_no_more_are_taken_than_asked_for(count):
    scores = np.array([0.5, 0.5, 2.5, 0.1, 0.5, 0.7, 0.5, 0.2, 0.5, 2.0], np.float32)
    found = ops.highest(paddle.to_tensor(scores), count).numpy()
    assert found.tolist() == sorted(set(found.tolist())) and len(found) == count
    np.testing.assert_array_equal(np.sort(scores[found]), np.sort(scores)[-count:])


def test_rows_are_scaled_and_shifted():
    rows, scale, offset = paddle.randn([5, 7]), paddle.randn([5]), paddle.randn([5])
    found = ops.scale_rows(rows, scale=scale, offset=offset)
    np.testing.assert_allclose(found, rows * scale.unsqueeze(1) + offset.unsqueeze(1), rtol=1e-6)


@pytest.mark.parametrize("shape", [[6], [6, 4]])
def test_rows_are_taken_and_put_by_index(place, shape):
    source, index = paddle.randn(shape), paddle.to_tensor([4, 0, 5])
    out = paddle.zeros([3, *shape[1:]])
    ops.take_rows(source, index, out=out)
    np.testing.assert_array_equal(out, source.numpy()[[4, 0, 5]])
    target = paddle.zeros(shape)
    ops.put_rows(target, index, values=out)
    expected = np.zeros(shape, np.float32)
    expected[[4, 0, 5]] = out.numpy()
    np.testing.assert_array_equal(target, expected)


def test_bfloat16_rows_are_put_by_index():
    target, values = paddle.zeros([6, 4], "bfloat16"), paddle.randn([2, 4]).astype("bfloat16")
    ops.put_rows(target, paddle.to_tensor([1, 3]), values=values)
    np.testing.assert_array_equal(target[1].astype("float32"), values[0].astype("float32"))
    assert target.astype("float32").abs().sum(axis=1).numpy().nonzero()[0].tolist() == [1, 3]


def test_exponentials_and_norms(place):
    rows = paddle.randn([5, 3])
    expected = rows.numpy()
    parts = [ops.squared_norms(part, ops.host_view(part), ones=paddle.ones([3])) for part in (rows[:2], rows[2:])]
    np.testing.assert_allclose(ops.concat_norms(parts), (expected**2).sum(axis=1), rtol=1e-6)
    found = ops.exp_(rows)
    np.testing.assert_allclose(found, np.exp(expected), rtol=1e-6)
    assert found.data_ptr() == rows.data_ptr()


@pytest.mark.filterwarnings("error")
def test_what_is_beyond_float32_is_infinite_without_a_warning(place):
    assert np.isinf(ops.exp_(paddle.full([2, 3], 1e3)).numpy()).all()
    rows = paddle.full([2, 3], 1e30)
    found = ops.squared_norms(rows, ops.host_view(rows), ones=paddle.ones([3]))
    assert np.isinf(np.asarray(found)).all()


def test_values_are_added_at_flat_indices():
    target = paddle.zeros([2, 3])
    ops.add_at_(target, paddle.to_tensor([5, 0]), values=paddle.to_tensor([2.0, 3.0]))
    np.testing.assert_array_equal(target, [[3, 0, 0], [0, 0, 2]])


def test_no_grad_keeps_the_result_out_of_autograd():
    weight = paddle.create_parameter([2], "float32")
    assert ops.no_grad(lambda tensor: tensor * 2)(weight).stop_gradient
    assert not (weight * 2).stop_gradient

"""A shard: its chunks and blocks, its norms and its update."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from plsc.losses.row_optimizers import SGD, Momentum
from plsc.losses.shard import Shard

pytestmark = pytest.mark.usefixtures("small_chunks")


def make_shard(classes=50, optimizer=None, **options):
    weight = np.random.default_rng(0).standard_normal((classes, 4)).astype("float32")
    return Shard(paddle.to_tensor(weight), optimizer or SGD(), **options)


@pytest.mark.cpu("counts the blocks of a CPU")
def test_blocks_are_views_of_the_weight_in_order():
    shard = make_shard()
    blocks = [block for chunk in shard.chunks for block in chunk.blocks]
    assert [block.number for block in blocks] == list(range(len(blocks)))
    assert [chunk.sizes for chunk in shard.chunks] == [[5, 5, 5, 1]] * 3 + [[2]]
    paddle.assign(paddle.full([5, 4], 7.0), blocks[1].rows)
    assert (shard.weight[5:10] == 7.0).all() and not (shard.weight[:5] == 7.0).any()


def test_an_update_applies_the_optimizer_to_each_block_and_the_bias():
    shard = make_shard(bias=paddle.zeros([50]))
    before = shard.weight.numpy().copy()
    blocks = [(block, paddle.full_like(block.rows, block.number)) for chunk in shard.chunks for block in chunk.blocks]
    shard.update([*blocks, (shard.bias_block, paddle.ones([50]))], learning_rate=0.5)
    expected = np.concatenate([np.full((len(block.rows), 4), 0.5 * block.number) for block, _ in blocks])
    np.testing.assert_allclose(before - shard.weight.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(shard.bias, -0.5)
    assert shard.step == 1


def test_norms_are_kept_over_updates_once_they_were_asked_for():
    shard = make_shard()
    blocks = [(block, block.rows * 0.5) for chunk in shard.chunks for block in chunk.blocks]
    shard.update(blocks, learning_rate=1.0)
    assert not shard.has_norms
    norms = shard.squared_norms().numpy()
    np.testing.assert_allclose(norms, (shard.weight.numpy() ** 2).sum(axis=1), rtol=1e-6)
    blocks = [(block, block.rows * 0.5) for chunk in shard.chunks for block in chunk.blocks]
    shard.update(blocks, learning_rate=1.0)
    assert shard.has_norms
    np.testing.assert_allclose(shard.squared_norms(), norms / 4, rtol=1e-6)
    shard.weight.set_value(shard.weight * 3)
    shard.invalidate_norms()
    np.testing.assert_allclose(shard.squared_norms(), norms / 4 * 9, rtol=1e-6)


def test_an_update_that_fails_leaves_no_old_norms():
    shard = make_shard()
    shard.squared_norms()

    def gradients():
        block = shard.chunks[0].blocks[0]
        yield block, paddle.ones_like(block.rows)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        shard.update(gradients(), learning_rate=1.0)
    assert not shard.has_norms


def test_the_parameter_keeps_its_memory_and_its_autograd():
    weight = paddle.create_parameter([6, 4], "float32")
    shard = Shard(weight, SGD())
    assert not weight.stop_gradient and shard.weight.stop_gradient
    block = shard.chunks[0].blocks[0]
    shard.update([(block, paddle.zeros_like(block.rows) + 1.0)], learning_rate=1.0)
    np.testing.assert_array_equal(weight, shard.weight)
    weight.set_value(np.ones((6, 4), "float32"))
    assert (shard.chunks[0].rows == 1.0).all()


def test_state_has_the_names_and_types_of_the_optimizer():
    bias = paddle.zeros([50])
    assert make_shard(bias=bias).state == {}
    shard = make_shard(optimizer=Momentum(), bias=bias)
    assert {name: value.shape for name, value in shard.state.items()} == {
        "weight:velocity": [50, 4],
        "bias:velocity": [50],
    }
    shard = make_shard(optimizer=Momentum(), bias=bias, state_storage="bfloat16")
    assert [value.dtype for value in shard.state.values()] == [paddle.bfloat16, paddle.float32]


def test_an_empty_shard_has_no_chunks_and_no_norms():
    shard = Shard(paddle.zeros([0, 4]), Momentum())
    assert shard.chunks == [] and shard.squared_norms().shape == [0]
    targets = shard.locate(paddle.to_tensor([3, 1]))
    assert not targets.owned.any() and shard.target_rows(targets).shape == [2, 4]
    shard.update([], learning_rate=1.0)

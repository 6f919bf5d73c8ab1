"""Paddle's tensors read and filled block by block: the same numbers, and memory for some blocks only."""

from __future__ import annotations

import tracemalloc

import numpy as np
import paddle
import pytest

from plsc import CheckpointError, Config
from plsc.checkpoint import Checkpoint, Part, reader, save_checkpoint
from plsc.distributed.collectives import Collectives
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.state import head_parts
from plsc.engine.tensor_rows import CheckpointState, TensorRows
from plsc.losses.classifier import Classifier
from plsc.utils.ranges import Range

DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"]


def make_tensor(dtype, shape, seed=0):
    numbers = np.random.default_rng(seed).integers(0, 100, shape)
    return paddle.to_tensor(numbers.astype("float32")).astype(dtype)


def save(root, tensors):
    parts = [Part(f"head.{name}", TensorRows(tensor)) for name, tensor in tensors.items()]
    return Checkpoint(save_checkpoint(root, "0", parts=parts, about={}, collectives=Collectives()))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(reader, "BLOCK_BYTES", 40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [[], [1], [7], [7, 4], [0, 4]])
def test_a_tensor_comes_back(tmp_path, dtype, shape):
    tensor = make_tensor(dtype, shape)
    saved = save(tmp_path, {"t": tensor})
    found = paddle.zeros(shape, dtype)
    CheckpointState(saved, "head.", ["t"]).copy_to("t", found)
    np.testing.assert_array_equal(found.numpy(), tensor.numpy())
    assert found.dtype == tensor.dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_range_and_chosen_rows_come_back(tmp_path, dtype):
    tensor = make_tensor(dtype, [7, 4])
    saved = save(tmp_path, {"t": tensor})
    for rows in (Range(2, 6), np.array([6, 0, 3, 5])):
        state = CheckpointState(saved, "head.", ["t"], rows_of=lambda name: rows)  # noqa: B023
        # As a parameter is: it requires a gradient.
        found = paddle.zeros([4, 4], dtype)
        found.stop_gradient = False
        state.copy_to("t", found)
        expected = tensor.numpy()[rows if isinstance(rows, np.ndarray) else slice(*rows)]
        np.testing.assert_array_equal(found.numpy(), expected)
        np.testing.assert_array_equal(state["t"], expected)


@pytest.mark.cpu("reads host memory")
def test_floats_on_a_cpu_are_read_from_their_own_memory():
    tensor = make_tensor("float32", [7, 4])
    rows = TensorRows(tensor).read(2, 4)
    tensor[2, 0] = -1.0
    assert rows[0, 0] == -1


def test_a_tensor_of_another_shape_or_type_is_refused(tmp_path):
    saved = save(tmp_path, {"t": make_tensor("float32", [7, 4])})
    state = CheckpointState(saved, "head.", ["t"])
    for other in (paddle.zeros([7, 5]), paddle.zeros([7, 4], "float64")):
        with pytest.raises(CheckpointError, match=r"tensor 'head.t' cannot be read: .* it is \[7, 4\] of float32, exp"):
            state.copy_to("t", other)
    assert "t" in state and "head.t" not in state and len(state) == 1
    with pytest.raises(KeyError):
        state["head.t"]


def make_head():
    config = Config(num_classes=4096, emb_dim=512, loss_type="dist_arcface")
    return Classifier(config, Collectives(), make_optimizer=lambda named: NamedOptimizer(config, named))


def test_saving_and_loading_take_memory_for_a_few_blocks(tmp_path, monkeypatch):
    """The state is 16 MiB, a block 1 MiB."""
    monkeypatch.setattr(reader, "BLOCK_BYTES", 1 << 20)
    head, other = make_head(), make_head()
    expected = {name: value.numpy() + 1 for name, value in head.state().items()}
    for name, value in head.state().items():
        value.set_value(expected[name])
    tracemalloc.start()
    save_checkpoint(tmp_path, "0", parts=head_parts(head, True, num_classes=4096), about={}, collectives=Collectives())
    saved = Checkpoint(tmp_path)
    saved.verify()
    other.load(CheckpointState(saved, "head.", list(expected)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    for name, value in other.state().items():
        np.testing.assert_array_equal(value.numpy(), expected[name])

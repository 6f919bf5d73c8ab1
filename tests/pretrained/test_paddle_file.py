"""Files of Paddle: pickles of arrays, and its binary form of one tensor."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plsc import CheckpointError
from plsc.pretrained.opening import open_weights
from plsc.pretrained.paddle_file import read_variable
from tests._support.fluid import save_variable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pdparams"


def network():
    paddle.seed(3)
    return paddle.nn.Sequential(
        paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.PReLU(4), paddle.nn.Linear(4, 5)
    )


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_saves_is_read_bit_for_bit(path, protocol):
    state = network().state_dict()
    paddle.save(state, str(path), protocol=protocol)
    weights = open_weights(path)
    assert not weights.is_torch and set(weights.tensors) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(weights.tensors[name].numpy(), tensor.numpy())


def test_large_arrays_are_views_of_the_file(path):
    paddle.save({"w": paddle.ones([300, 300])}, str(path))
    tensor = open_weights(path).tensors["w"]
    assert (
        isinstance(tensor._array.base, memoryview) or tensor._array.base is not None and not tensor._array.flags.owndata
    )
    np.testing.assert_array_equal(tensor.read(5, 7), np.ones([2, 300]))


def test_tensors_within_dicts_and_arrays_of_other_types(path):
    content = {"state_dict": {"a": np.arange(6.0).reshape(2, 3, order="F"), "b": np.float16([1, 2])}, "note": ("x", 1)}
    with open(path, "wb") as file:
        pickle.dump(content, file, protocol=5)
    tensors = open_weights(path).tensors
    np.testing.assert_array_equal(tensors["a"].numpy(), content["state_dict"]["a"])
    np.testing.assert_array_equal(tensors["b"].numpy(), content["state_dict"]["b"])


def test_arrays_saved_in_pieces_are_joined(path):
    pieces = {"UnpackBigParamInfor@@": {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}}}
    with open(path, "wb") as file:
        pickle.dump({"w@@.0": np.arange(4.0), "w@@.1": np.arange(4.0, 6), **pieces}, file, protocol=2)
    np.testing.assert_array_equal(open_weights(path).tensors["w"].numpy(), np.arange(6.0).reshape(2, 3))
    pieces["UnpackBigParamInfor@@"]["w"]["OriginShape"] = (2, 4)
    with open(path, "wb") as file:
        pickle.dump({"w@@.0": np.arange(4.0), "w@@.1": np.arange(4.0, 6), **pieces}, file, protocol=2)
    with pytest.raises(CheckpointError, match="do not fit together"):
        open_weights(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_any_changed_byte_gives_numbers_or_a_checkpoint_error(path, place, byte):
    data = bytearray(pickle.dumps({"a": np.arange(6.0), "b": {"c": np.ones([2, 2], np.float32)}}, protocol=4))
    data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        for tensor in open_weights(path).tensors.values():
            tensor.numpy()
    except CheckpointError as error:
        assert str(error).startswith(str(path))


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("true",)


def test_a_pickle_that_asks_for_a_function_is_refused(path):
    with open(path, "wb") as file:
        pickle.dump({"a": np.ones(2), "b": Attack()}, file)
    with pytest.raises(CheckpointError, match=r"asks for posix.system.*nothing of it was run"):
        open_weights(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_pickle_that_is_cut_off_is_refused(path, share):
    paddle.save(network().state_dict(), str(path))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        open_weights(path)


def test_text_that_stands_for_bytes_is_not_converted_again_and_again(path):
    text = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000
    call = b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R"
    path.write_bytes(b"\x80\x02(" + text + b"q\x00c_codecs\nencode\nq\x01" + call * 5_000 + b"t.")
    with pytest.raises(CheckpointError, match="converts more text than the file has"):
        open_weights(path)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i4", "i8", "u1"])
def test_a_tensor_in_binary_form(tmp_path, dtype):
    value = np.arange(12).reshape(3, 4).astype(dtype)
    save_variable(tmp_path / "w", value)
    np.testing.assert_array_equal(read_variable(tmp_path / "w").numpy(), value)


def test_the_binary_form_is_that_of_an_inference_model_of_one_tensor(tmp_path):
    """Paddle writes the tensors of an inference model one after the other in the same form."""
    layer = paddle.nn.Linear(3, 2, bias_attr=False)
    paddle.jit.save(layer, str(tmp_path / "model"), [paddle.static.InputSpec([None, 3], "float32")])
    np.testing.assert_array_equal(read_variable(tmp_path / "model.pdiparams").numpy(), layer.weight.numpy())


def test_damaged_binary_forms_are_refused(tmp_path):
    path = tmp_path / "w"
    data = save_variable(path, np.arange(12.0)).read_bytes()
    for damaged in [data[:-1], data + b"\0", data[:10], b"\1" + data[1:], data[:16] + b"\xff" * 4 + data[20:], b"x"]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_variable(path)

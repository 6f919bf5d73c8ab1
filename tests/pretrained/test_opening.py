"""Files of other kinds: safetensors, ONNX, checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from plsc import CheckpointError
from plsc.checkpoint import Part, save_checkpoint
from plsc.distributed.collectives import Collectives
from plsc.pretrained.opening import open_weights

VALUE = np.arange(6, dtype="f4").reshape(2, 3)


def test_safetensors(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"net.a": VALUE, "net.b": VALUE.astype("f2"), "net.c": np.arange(3)}, path)
    tensors = open_weights(path).tensors
    np.testing.assert_array_equal(tensors["a"].numpy(), VALUE)
    np.testing.assert_array_equal(tensors["b"].numpy(), VALUE)
    np.testing.assert_array_equal(tensors["c"].numpy(), [0, 1, 2])


def test_bfloat16_in_safetensors(tmp_path):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.array([0x3F80, 0xC000], "<u2").tobytes())
    np.testing.assert_array_equal(open_weights(path).tensors["a"].numpy(), [1, -2])


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [float("inf")], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": 1}).encode(),
        b"[" * 100_000,
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, header):
    path = tmp_path / "net.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=str(path)):
        open_weights(path).tensors["a"].numpy()


@pytest.mark.parametrize(
    "size, words",
    [(100, "damaged: its header has 2 bytes, expected 100"), (10 << 30, "expected the length of a header")],
)
def test_safetensors_cut_off_in_the_header_are_named_so(tmp_path, size, words):
    path = tmp_path / "net.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=words):
        open_weights(path)


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    values = [onnx.numpy_helper.from_array(VALUE, "a"), onnx.numpy_helper.from_array(VALUE.astype("f2"), "b")]
    graph = helper.make_graph([], "net", [], [], values)
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph), str(path))
    tensors = open_weights(path).tensors
    np.testing.assert_array_equal(tensors["a"].numpy(), VALUE)
    np.testing.assert_array_equal(tensors["b"].numpy(), VALUE)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="no ONNX model, or damaged"):
        open_weights(path)


def test_onnx_reads_no_file_outside_of_its_folder(tmp_path):
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret").write_bytes(VALUE.tobytes())
    (tmp_path / "inner").mkdir()
    value = onnx.TensorProto(name="a", data_type=1, dims=[2, 3], data_location=onnx.TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../secret")
    path = tmp_path / "inner" / "net.onnx"
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([], "net", [], [], [value])).SerializeToString())
    with pytest.raises(CheckpointError):
        open_weights(path)


def test_a_checkpoint_and_a_folder_of_checkpoints(tmp_path):
    for epoch in range(2):
        parts = [Part("backbone.a", VALUE + epoch), Part("head.weight", VALUE)]
        save_checkpoint(tmp_path, str(epoch), parts=parts, about={}, collectives=Collectives())
    for path, expected in [(tmp_path / "0", VALUE), (tmp_path, VALUE + 1)]:
        weights = open_weights(path)
        assert weights.kind == "checkpoint" and set(weights.tensors) == {"a"}
        np.testing.assert_array_equal(weights.tensors["a"].numpy(), expected)
        np.testing.assert_array_equal(weights.tensors["a"].transposed().numpy(), expected.T)


def test_an_empty_file_is_said(tmp_path):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(CheckpointError, match=r"weights.pth: is empty, expected a file of weights"):
        open_weights(tmp_path / "weights.pth")


def test_what_does_not_exist_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"net.pt: does not exist; expected a checkpoint, or a file of weights"):
        open_weights(tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="is a folder without a checkpoint"):
        open_weights(tmp_path)

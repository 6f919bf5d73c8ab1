"""Files of PyTorch, written by the tests' own writer of their format."""

from __future__ import annotations

import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plsc import CheckpointError
from plsc.pretrained.opening import open_weights
from plsc.pretrained.tensors import StoredTensor
from tests._support.torch_zip import Raw, Tensor, torch_save

ATTACK = Raw(b"cos\nsystem\nX\x04\x00\x00\x00true\x85R")
WEIGHT = np.arange(6, dtype="f4").reshape(2, 3)


def text(value):
    data = str(value).encode()
    return b"X" + struct.pack("<I", len(data)) + data


def contents(path):
    return {name: tensor.numpy() for name, tensor in open_weights(path).tensors.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.pt"


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "u1", "?"])
def test_types_and_byte_orders(path, dtype, order):
    value = np.arange(6).reshape(2, 3).astype(dtype)
    values = {"a": value, "scalar": np.array(value[1, 1]), "none": value[:0]}
    torch_save(path, values, order=order)
    found = contents(path)
    for name, expected in values.items():
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == np.dtype(dtype) and found[name].shape == expected.shape


def test_bfloat16_is_read_as_float32(path):
    bits = np.array([0x3F80, 0xC000, 0x7F80], "<u2")  # 1, -2, infinity
    torch_save(path, {"a": Tensor(("0", bits), (3,), (1,), kind="BFloat16")})
    np.testing.assert_array_equal(contents(path)["a"], np.float32([1, -2, np.inf]))


def test_tensors_share_a_storage_and_lie_in_it_with_strides(path):
    numbers = np.arange(20, dtype="f4")
    torch_save(
        path,
        {
            "part": Tensor(("0", numbers), (4,), (1,), offset=5),
            "transposed": Tensor(("0", numbers), (3, 2), (1, 3)),
            "steps": Tensor(("0", numbers), (2, 3), (10, 2), offset=1),
        },
    )
    found = contents(path)
    np.testing.assert_array_equal(found["part"], numbers[5:9])
    np.testing.assert_array_equal(found["transposed"], numbers[:6].reshape(2, 3).T)
    np.testing.assert_array_equal(found["steps"], [[1, 3, 5], [11, 13, 15]])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 1, "state_dict": state, "opt": {"lr": 0.1}},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {f"model.module.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict_backbone": state, "state_dict_softmax_fc": {"weight": WEIGHT}},
    ],
)
def test_nested_dicts_and_prefixes(path, wrap):
    torch_save(path, wrap({"conv.weight": WEIGHT, "conv.bias": WEIGHT[0]}))
    found = contents(path)
    assert set(found) == {"conv.weight", "conv.bias"}
    np.testing.assert_array_equal(found["conv.weight"], WEIGHT)


def test_prefixes_stay_where_names_would_become_equal(path):
    torch_save(path, {"a": WEIGHT, "model.a": WEIGHT})
    assert set(contents(path)) == {"a", "model.a"}


def test_options_of_a_training_beside_the_weights_stay_inert(path):
    options = Raw(b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb")
    state = Raw(b"cpytorch_lightning.callbacks\nEarlyStopping\n)R")
    torch_save(path, {"state_dict": {"a": WEIGHT}, "hyper_parameters": options, "callbacks": [state]})
    np.testing.assert_array_equal(contents(path)["a"], WEIGHT)


@pytest.mark.parametrize(
    "code",
    [
        ATTACK.code,
        b"cposix\nsystem\n(X\x04\x00\x00\x00truetR",
        b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R",
        b"cbuiltins\ngetattr\n)R",
        b"\x8c\x02os\x8c\x06system\x93)R",
        b"csubprocess\nPopen\n)\x81",
        b"(ios\nsystem\n",
        b"csys\nmodules\n",
    ],
)
def test_a_file_that_asks_for_a_function_is_refused_and_nothing_is_run(path, tmp_path, code):
    torch_save(path, {"a": WEIGHT, "x": Raw(code)})
    with pytest.raises(CheckpointError, match=r"may be an attack; nothing of it was run|no file of weights needs"):
        open_weights(path)


def test_an_attack_behind_a_harmless_name_is_not_called(path, tmp_path):
    """`torch.load` and `numpy.load` are functions of packages whose classes may stand beside weights."""
    mark = tmp_path / "mark"
    torch_save(path, {"a": WEIGHT, "x": Raw(b"cnumpy\nsave\n" + text(mark) + b"K\x01\x86R")})
    np.testing.assert_array_equal(contents(path)["a"], WEIGHT)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "tensor, said",
    [
        (Tensor(("0", WEIGHT.ravel()), (7,), (1,)), "a storage of 6 elements"),
        (Tensor(("0", WEIGHT.ravel()), (2, 3), (4, 1)), "a storage of 6 elements"),
        (Tensor(("0", WEIGHT.ravel()), (1 << 40,), (0,)), "a storage of 6 elements"),
        (Tensor(("0", WEIGHT.ravel()), (1 << 62, 1 << 62), (1, 1)), "a storage of 6 elements"),
        (Tensor(("0", WEIGHT.ravel()), (2,), (1,), offset=5), "a storage of 6 elements"),
        (Tensor(("0", WEIGHT.ravel()), (2,), (-1,), offset=3), "stride"),
        (Tensor(("0", WEIGHT.ravel()), (2, 3), (1,)), "stride"),
        (Tensor(("0", WEIGHT.ravel()), (2,), (1,), offset=-1), "at -1|stride"),
        (Tensor(("0", WEIGHT.ravel()), (2,), (1,), kind="Complex"), "which is not known"),
    ],
)
def test_a_tensor_that_claims_more_than_its_storage_is_refused(path, tensor, said):
    torch_save(path, {"a": tensor})
    with pytest.raises(CheckpointError, match=said):
        open_weights(path)


def test_a_storage_that_is_not_there_is_refused_whatever_its_name(path, tmp_path):
    (tmp_path / "secret").write_bytes(b"0123")
    torch_save(path, {"a": WEIGHT})
    for key in ("../../secret", "/etc/passwd", "../data.pkl/x"):
        reference = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"K\x01tQ"
        code = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"K\x00K\x01\x85K\x01\x85\x89NtR"
        torch_save(path, {"a": Raw(code)})
        with pytest.raises(CheckpointError, match="holds no data/"):
            open_weights(path)


def test_a_huge_memo_index_is_refused(path):
    torch_save(path, {"a": WEIGHT, "x": Raw(b"Nr\xff\xff\xff\x7f")})
    with pytest.raises(CheckpointError, match="more than the file has bytes"):
        open_weights(path)


def test_dicts_that_share_dicts_take_no_time(path):
    """Ten levels of a dict that refers a hundred times to the level below: 10^20 places, in some kB."""
    code = b"}q\x00"
    for level in range(1, 11):
        items = b"".join(b"K" + bytes([number]) + b"h" + bytes([level - 1]) for number in range(100))
        code += b"}(" + items + b"uq" + bytes([level])
    torch_save(path, {"state_dict": {"a": WEIGHT}, "x": Raw(code[:0] + b"(" + code + b"l")})
    np.testing.assert_array_equal(contents(path)["a"], WEIGHT)


def test_a_dict_that_holds_itself_is_read(path):
    torch_save(path, {"a": WEIGHT, "x": Raw(b"}q\x00X\x0a\x00\x00\x00state_dicth\x00s")})
    np.testing.assert_array_equal(contents(path)["a"], WEIGHT)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(path, share):
    data = torch_save(path, {"a": np.zeros([100], "f4")}).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=str(path)):
        open_weights(path).tensors["a"].numpy()


def test_a_changed_number_is_found_by_its_checksum(path):
    data = torch_save(path, {"a": WEIGHT, "b": WEIGHT + 10}).read_bytes()
    place = data.index(WEIGHT.tobytes())
    path.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    tensors = open_weights(path).tensors
    np.testing.assert_array_equal(tensors["b"].numpy(), WEIGHT + 10)
    with pytest.raises(CheckpointError, match=f"{path}: its storage 0 is damaged: its checksum"):
        tensors["a"].numpy()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_any_changed_byte_gives_the_numbers_or_a_checkpoint_error(path, place, byte):
    data = bytearray(torch_save(path, {"a": WEIGHT, "options": {"lr": 0.1, "names": ["x", None]}}).read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        for tensor in open_weights(path).tensors.values():
            tensor.numpy()
    except CheckpointError as error:
        assert str(error).startswith(str(path))


def test_a_compressed_member_is_refused(path, tmp_path):
    torch_save(path, {"a": np.zeros([1 << 16], "f4")})
    small = tmp_path / "small.pt"
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match=r"compressed, expected it as torch.save writes it"):
        open_weights(small)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r'torch.save\(torch.load\(FILE, map_location="cpu"\), OTHER\)'),
        (b"", "is empty, expected a file of weights"),
        (b"PK\x03\x04 and no more", "cut off or damaged"),
        (b"some text", "none of the files that are read"),
        (b"\x80\x02}.", "holds no tensors by name"),
        (b"\x80\x02cmy.nowhere\nNet\n)\x81.", "may be an attack"),
    ],
)
def test_other_files_are_refused_with_what_to_do(path, data, said):
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_weights(path)
    assert str(caught.value).startswith(str(path))


def test_a_script_and_a_whole_network_are_refused_with_the_cure(path):
    torch_save(path, {"a": WEIGHT}, **{"code/x_py": b"pass"})
    with pytest.raises(CheckpointError, match=r"torch.jit.load\(FILE\).state_dict\(\)"):
        open_weights(path)
    torch_save(path, Raw(b"ctorch.nn.modules.container\nSequential\n)\x81}b"))
    with pytest.raises(CheckpointError, match=r"torch.save\(network.state_dict\(\), FILE\)"):
        open_weights(path)


def test_a_tensor_alone_is_the_content(path):
    torch_save(path, WEIGHT)
    content = open_weights(path).content
    assert isinstance(content, StoredTensor)
    np.testing.assert_array_equal(content.read(1, 2), WEIGHT[1:])


def test_numpy_numbers_and_arrays_beside_tensors(path):
    best = Raw(
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbc_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1"
        b"\x86R\x86R"
    )
    torch_save(path, {"state_dict": {"a": WEIGHT}, "best": best})
    assert set(contents(path)) == {"a"}

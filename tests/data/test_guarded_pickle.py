"""The guarded unpickler: no file gets to run anything, and damage raises DataError only."""

from __future__ import annotations

import argparse
import io
import logging
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plsc.data import guarded_pickle
from plsc.data.verification_set import VerificationSet
from plsc.errors import DataError
from tests._support.pairs import AS_ARRAYS, IMAGES, SAME, write_bin


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, __import__, np.load, np.fromfile, io.open])
def test_a_call_is_refused_by_name_and_nothing_runs(tmp_path, function, protocol):
    sentinel = tmp_path / "sentinel"
    command = {os.system: f"touch {sentinel}"}.get(function, f"open({str(sentinel)!r}, 'w').close()")
    path = write_bin(tmp_path, ([Attack(function, command), *IMAGES], SAME), protocol)
    name = {os.system: r"posix\.system"}.get(function, function.__name__)
    with pytest.raises(DataError, match=rf"lfw\.bin: asks for \S*{name}, which no verification set needs.*nothing of"):
        VerificationSet.load(path)
    assert not sentinel.exists()
    if function is os.system:  # and the attack is a real one
        pickle.loads(path.read_bytes())
        assert sentinel.exists()


def test_instances_and_old_style_calls_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"asks for pathlib\.\S*Path"):
        VerificationSet.load(write_bin(tmp_path, ([Path("a")], [True])))
    with pytest.raises(DataError, match=r"asks for argparse\.Namespace"):
        VerificationSet.load(write_bin(tmp_path, ([argparse.Namespace(a=1)], [True])))
    with pytest.raises(DataError, match=r"asks for os\.system"):
        VerificationSet.load(write_bin(tmp_path, b"(S'true'\nios\nsystem\n."))
    with pytest.raises(DataError, match=r"lfw\.bin: .*EXT1 at byte"):
        VerificationSet.load(write_bin(tmp_path, b"\x80\x02\x82\x01."))
    with pytest.raises(DataError, match="outside the file"):
        VerificationSet.load(write_bin(tmp_path, b"\x80\x02K\x01Q."))


def test_what_would_take_memory_or_time_without_end_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"memo index 4026531840 at byte 5"):
        VerificationSet.load(write_bin(tmp_path, b"\x80\x02]" + b"0]r" + struct.pack("<I", 0xF0000000) + b"."))
    with pytest.raises(DataError, match="cut off"):
        VerificationSet.load(write_bin(tmp_path, b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a."))
    nested = ()
    for _ in range(60):
        nested = (nested, nested)
    with pytest.raises(DataError, match="instruction SETITEM at byte"):
        VerificationSet.load(
            write_bin(tmp_path, pickle.dumps((), 2)[:-1] + pickle.dumps([nested], 2)[3:-3] + b"}h\x00K\x01s.")
        )
    with pytest.raises(DataError, match="expected"):
        VerificationSet.load(write_bin(tmp_path, (np.zeros(3, np.dtype("u1")), [nested])))
    huge = pickle.dumps((AS_ARRAYS, SAME), 2).replace(struct.pack("<BB", 0x4B, len(IMAGES[0])), b"J\xff\xff\xff\x7f")
    with pytest.raises(DataError, match="cannot reshape"):
        VerificationSet.load(write_bin(tmp_path, huge))


def test_arrays_that_share_a_list_of_objects_do_not_copy_it():
    """A small file may refer to one long list from very many arrays."""
    objects, array = [None] * 3, guarded_pickle.PickledArray(np.zeros(0))
    array.__setstate__((1, (3,), guarded_pickle.PickledDtype("O8"), False, objects))
    assert array.array is objects and array.elements() == objects


@pytest.mark.parametrize("images", [IMAGES, AS_ARRAYS], ids=["bytes", "arrays"])
def test_a_file_cut_off_anywhere_says_so(tmp_path, images):
    data = pickle.dumps((images, SAME), 4)
    for length in [*range(2, 60), *range(60, len(data), 17), len(data) - 1]:
        with pytest.raises(DataError, match=rf"cut off.*the file has {length} bytes; expected"):
            VerificationSet.load(write_bin(tmp_path, data[:length]))


def test_bytes_after_the_end_are_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "plsc"):
        pairs = VerificationSet.load(write_bin(tmp_path, pickle.dumps((IMAGES, SAME)) + b"more"))
    assert len(pairs) == 3 and "ignored 4 bytes" in caplog.text


WHOLE = [pickle.dumps((AS_ARRAYS, np.array(SAME)), protocol) for protocol in (0, 2, 4, 5)]
WHOLE.append(pickle.dumps((np.array([*IMAGES, None], object)[:-1], np.array(SAME, np.float64)), 2))
WHOLE[-1] += b'\n{"format": "plsc-verification-set", "version": 1, "folds": [0, 1, 1]}\n'


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_data_error_only(tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write_bin(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        VerificationSet.load(path)
    except DataError as error:
        assert "lfw.bin" in str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_raise_data_error_only(tmp_path_factory, content):
    with pytest.raises(DataError, match=r"lfw\.bin"):
        VerificationSet.load(write_bin(tmp_path_factory.getbasetemp(), content))

"""The reader of pickles of plain values. What it refuses is tested by files, in the tests of the formats."""

from __future__ import annotations

import contextlib
import pickle
import pickletools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plsc import CheckpointError
from plsc.pretrained.inert_pickle import Named, read_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(value=PLAIN, protocol=st.sampled_from([2, 3, 4, 5]))
def test_plain_values_of_every_protocol(value, protocol):
    assert read_pickle(memoryview(pickle.dumps(value, protocol)), constructors={}) == value


@given(value=st.lists(st.text() | st.integers() | st.floats(allow_nan=False) | st.none()))
def test_plain_values_in_text(value):
    assert read_pickle(memoryview(pickle.dumps(value, 0)), constructors={}) == value


def test_long_bytes_are_views_of_the_file():
    data = pickle.dumps({"long": bytes(10_000), "short": b"ab"})
    found = read_pickle(memoryview(data), constructors={})
    assert isinstance(found["long"], memoryview) and found["long"].obj is data and found["short"] == b"ab"


def test_a_shared_value_stays_shared():
    shared = [1]
    first, second = read_pickle(memoryview(pickle.dumps((shared, shared))), constructors={})
    assert first is second


def test_given_constructors_take_the_place_of_names():
    data = b"cmodule\nname\nK\x01K\x02\x86R."
    assert read_pickle(memoryview(data), constructors={("module", "name"): lambda *given: given}) == (1, 2)


def test_harmless_names_become_inert():
    found = read_pickle(memoryview(b"ctorch.optim\nSGD\n)R."), constructors={})
    assert isinstance(found, Named) and str(found) == "torch.optim.SGD"


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "not exhausted|cut off or damaged"),
        (b"\x80\x02", "cut off or damaged"),
        (b".", "cut off or damaged"),
        (b"K\x01K\x02.", "cut off or damaged"),
        (b"u.", "cut off or damaged"),
        (b"K\x01)R.", "an int is called|damaged"),
        (b"NNs.", "damaged"),
        (b"(K\x01K\x02K\x03d.", "damaged"),
        (b"h\x05.", "damaged"),
        (b"\x82\x01.", "pickle instruction EXT1, which no file of weights needs"),
        (b"Pname\n.", "pickle instruction PERSID"),
        (b"NQ.", "refers to an object outside its pickle"),
        (b"(cos\nsystem\no.", "asks for os.system"),
        (b"K\x01K\x01\x93.", "names a class by something else than a text"),
    ],
)
def test_damaged_pickles_are_refused(data, said):
    with pytest.raises(CheckpointError, match=said):
        read_pickle(memoryview(data), constructors={})


@given(data=st.binary())
def test_any_bytes_give_a_value_or_a_checkpoint_error(data):
    with contextlib.suppress(CheckpointError):
        read_pickle(memoryview(data), constructors={})


def test_every_instruction_is_known_or_refused():
    """No instruction of Python's falls through without an effect."""
    refused = {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "PERSID", "FROZENSET", "NEXT_BUFFER"}
    refused.add("READONLY_BUFFER")
    from plsc.pretrained import inert_pickle

    known = {*inert_pickle._CONSTANTS, *inert_pickle._VALUES, *inert_pickle._STEPS, "PROTO", "FRAME", "STOP", "GLOBAL"}
    known |= {"PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET"}
    assert {instruction.name for instruction in pickletools.opcodes} == known | refused
    assert not known & refused

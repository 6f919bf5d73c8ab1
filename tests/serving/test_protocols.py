"""Bodies of any content: parsed, or an error of status 4xx with a reason."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests._support.serving_fuzz import QUICK, SHAPE, card, mutate, only_4xx, seeds

pytest.importorskip("orjson", reason="orjson is not installed")

from plsc.inference.paddle_serving_messages import Request
from plsc.serving import protocols
from plsc.serving.http_error import HTTPError

NAMES = ("x", "fc_0.tmp_1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


tensors = st.fixed_dictionaries(
    {},
    optional={
        "float_data": json_values | st.lists(st.floats(width=32) | st.integers(0, 255), min_size=48, max_size=48),
        "int_data": json_values | st.lists(st.integers(-1, 256), min_size=48, max_size=48),
        "shape": json_values
        | st.sampled_from([[1, 3, 4, 4], [1, 4, 4, 3], [-1, 3, 4, 4], [1, 3, 4, 4, 1], [2**62] * 4]),
        "name": json_values | st.sampled_from(["image", "x"]),
        "alias_name": json_values,
        "elem_type": json_values,
    },
)


def valid_general(rng):
    request = Request(log_id=rng.randrange(10))
    values = np.asarray([rng.random() for _ in range(2 * 48)], "<f4")
    request.tensor.add(name="image", shape=[2, *SHAPE], elem_type=1, float_data=[values.tobytes()])
    return request.SerializeToString()


@QUICK
@given(st.binary(max_size=200), seeds, st.booleans())
def test_the_general_service_in_protobuf(noise, seed, takes_pixels):
    rng = random.Random(seed)
    for body in (noise, mutate(valid_general(rng), rng)):
        found = only_4xx(protocols.parse_general_proto, body, card(takes_pixels), names=NAMES)
        if found is not None:
            assert found.tensor.ndim == 4 and np.isfinite(found.tensor).all()
            # What is accepted can be answered.
            protocols.general_reply_proto(np.zeros([len(found.tensor), 4], np.float32), found.log_id)


@QUICK
@given(
    json_values
    | st.fixed_dictionaries(
        {"tensor": json_values | st.lists(tensors, max_size=2)},
        optional={"fetch_var_names": json_values | st.just(["embedding"]), "log_id": json_values},
    ),
    st.binary(max_size=80),
    st.booleans(),
)
def test_the_general_service_in_json(value, noise, takes_pixels):
    for body in (json.dumps(value).encode(), noise, json.dumps(value).encode()[: len(noise)]):
        found = only_4xx(protocols.parse_general_json, body, card(takes_pixels), names=NAMES)
        if found is not None:
            assert found.tensor.dtype == (np.uint8 if takes_pixels else np.float32)
            protocols.general_reply_json(np.zeros([len(found.tensor), 4], np.float32), found.log_id)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(["base64_string", "images", "x"]),
        json_values | st.lists(st.text("AZaz09+/=\n ", max_size=40), max_size=4),
    ),
    st.binary(max_size=80),
)
def test_the_face_service(value, noise):
    for body in (json.dumps(value).encode(), noise):
        for image in only_4xx(protocols.base64_images, body, "base64_string", limit=3) or ():
            assert isinstance(image, bytes)


@QUICK
@given(seeds, st.binary(max_size=300))
def test_gzip(seed, noise):
    rng = random.Random(seed)
    for body in (mutate(gzip.compress(noise), rng), noise, gzip.compress(noise) * 2):
        found = only_4xx(protocols.gunzip, body, 250)
        assert found is None or len(found) <= 250


def test_a_long_text_among_numbers_takes_no_memory():
    body = json.dumps({"tensor": [{"float_data": [0.5] * 100_000 + ["x" * 4_000_000], "shape": [1, 3, 4, 4]}]}).encode()
    with pytest.raises(HTTPError, match="expected numbers only"):
        protocols.parse_general_json(body, card(False), names=NAMES)


@pytest.mark.parametrize("text", ["0001" + "0" * 5000, "0", "101", "-1", "x", ""])
def test_a_wrong_number_of_results_is_refused(text):
    with pytest.raises(HTTPError, match="expected a number from 1 to 100"):
        protocols.parse_count([("k", text)])


def test_a_gzip_body_of_many_members_is_refused():
    assert protocols.gunzip(gzip.compress(b"ab") * 3, 100) == b"ababab"
    with pytest.raises(HTTPError, match="more than 16 members"):
        protocols.gunzip(gzip.compress(b"") * 100_000, 100)

"""Whatever is sent to the three parsers, the images and the form: an answer, or a 4xx with a reason."""

from __future__ import annotations

import base64
import gzip
import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests._support.servers import make_image, serving

urllib3 = pytest.importorskip("urllib3", reason="plsc[serve] is not installed")
pytest.importorskip("orjson", reason="plsc[serve] is not installed")

from plsc.inference.model_card import ModelCard  # noqa: E402
from plsc.inference.paddle_serving_messages import Request  # noqa: E402
from plsc.serving import protocols  # noqa: E402
from plsc.serving.http_error import Refused  # noqa: E402
from plsc.serving.images import decode_images  # noqa: E402

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
SHAPE = (3, 4, 4)
NAMES = ("x", "fc_0.tmp_1")


def description(takes_pixels):
    return ModelCard(
        directory=Path("."),
        image_shape=SHAPE,
        emb_dim=4,
        flip=False,
        takes_pixels=takes_pixels,
        gives_unit=False,
        bgr=False,
        weights="",
        plain_kernels=False,
        pixel_mean=127.5,
        pixel_std=128.0,
    )


def only_4xx(function, *arguments):
    """The function's result, or None where it refused."""
    try:
        return function(*arguments)
    except Refused as refused:
        assert 400 <= refused.status < 500 and refused.reason
        return None


def valid_general(rng):
    request = Request(log_id=rng.randrange(10))
    values = np.asarray([rng.random() for _ in range(2 * 48)], "<f4")
    request.tensor.add(name="image", shape=[2, *SHAPE], elem_type=1, float_data=[values.tobytes()])
    return request.SerializeToString()


def mutate(body, rng):
    """A few bytes changed, cut out, doubled or put in."""
    body = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(body) + 1)
        way = rng.randrange(4)
        if way == 0 and at < len(body):
            body[at] = rng.randrange(256)
        elif way == 1:
            del body[at : at + rng.randrange(1, 40)]
        elif way == 2:
            body[at:at] = body[at : at + rng.randrange(1, 40)]
        else:
            body[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 8)))
    return bytes(body)


seeds = st.integers(0, 2**32)
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


@QUICK
@given(st.binary(max_size=200), seeds, st.booleans())
def test_the_general_service_in_protobuf(noise, seed, takes_pixels):
    rng = random.Random(seed)
    for body in (noise, mutate(valid_general(rng), rng)):
        found = only_4xx(protocols.parse_general_proto, body, description(takes_pixels), NAMES)
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
        found = only_4xx(protocols.parse_general_json, body, description(takes_pixels), NAMES)
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
        for image in only_4xx(protocols.base64_images, body, "base64_string", 3) or ():
            assert isinstance(image, bytes)


@QUICK
@given(seeds, st.sampled_from([".png", ".jpg", ".bmp", ".webp"]), st.binary(max_size=100))
def test_images(seed, suffix, noise):
    rng = random.Random(seed)
    for image in (mutate(make_image(seed % 5, 9, suffix), rng), noise):
        found = only_4xx(decode_images, [image], description(False), 1000)
        assert found is None or found.shape == (1, *SHAPE)


@QUICK
@given(seeds, st.binary(max_size=300))
def test_gzip(seed, noise):
    rng = random.Random(seed)
    for body in (mutate(gzip.compress(noise), rng), noise, gzip.compress(noise) * 2):
        found = only_4xx(protocols.gunzip, body, 250)
        assert found is None or len(found) <= 250


def test_a_server_under_fuzz_answers_4xx_or_200_and_lives(model, tmp_path):
    rng, image = random.Random(0), make_image(0)
    form, kind = urllib3.filepost.encode_multipart_formdata([("image", ("a", image)), ("image", ("b", image))])
    listed = json.dumps({"images": [base64.b64encode(image).decode()]}).encode()
    face = json.dumps({"base64_string": [base64.b64encode(image).decode()]}).encode()
    bodies = [
        ("/embed", image, "image/png"),
        ("/embed", form, kind),
        ("/embed", listed, "application/json"),
        ("/verify", form, kind),
        ("/FaceClassifyService/inference", face, "application/json"),
        ("/GeneralModelService/inference", valid_general(rng), "application/proto"),
        ("/GeneralModelService/inference", b'{"tensor": [{"float_data": [1], "shape": [1]}]}', "application/json"),
    ]
    http = urllib3.PoolManager(retries=False, timeout=30)
    with serving(model, "--no-access-log", log=tmp_path / "log") as server:
        statuses = []
        for number in range(600):
            path, body, kind_of_body = rng.choice(bodies)
            headers = {
                "Content-Type": kind_of_body
                if rng.random() < 0.9
                else mutate(kind_of_body.encode(), rng)
                .decode("ascii", "ignore")
                .replace("\n", "")
                .replace("\r", "")
                .strip()
            }
            body = mutate(body, rng) if number % 10 else body
            if rng.random() < 0.2:
                headers["Content-Encoding"], body = "gzip", mutate(gzip.compress(body), rng)
            statuses.append(http.request("POST", server.url + path, body=body, headers=headers).status)
        assert http.request("POST", server.url + "/embed", body=image).status == 200
        assert "Traceback" not in server.text()
    assert all(status == 200 or 400 <= status < 500 for status in statuses), set(statuses)
    assert statuses.count(200) > 20 and statuses.count(400) > 100


def test_a_long_text_among_numbers_takes_no_memory():
    body = json.dumps({"tensor": [{"float_data": [0.5] * 100_000 + ["x" * 4_000_000], "shape": [1, 3, 4, 4]}]}).encode()
    with pytest.raises(Refused, match="expected numbers only"):
        protocols.parse_general_json(body, description(False), NAMES)


@pytest.mark.parametrize("text", ["0001" + "0" * 5000, "0", "101", "-1", "x", ""])
def test_numbers_of_results_that_are_none(text):
    with pytest.raises(Refused, match="expected a number from 1 to 100"):
        protocols.parse_options([("k", text)])


def progressive(scans, segments=0):
    """A JPEG header with so many scans and EXIF segments; what decodes or reads them all takes minutes."""
    whole = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    first = whole.index(b"\xff\xda")
    scan = whole[first : whole.index(b"\xff", first + 2)]
    return whole[:2] + b"\xff\xe1\x00\x08Exif\0\0" * segments + whole[2:-2] + scan * scans + whole[-2:]


@pytest.mark.parametrize("image", [progressive(200), progressive(0, 200)])
def test_a_jpeg_of_many_segments_is_refused_before_it_is_read(image):
    assert decode_images([progressive(0, 3)], description(False), 10_000).shape == (1, *SHAPE)
    with pytest.raises(Refused, match="a JPEG of more than 100 scans or EXIF segments"):
        decode_images([image], description(False), 10_000)


def test_a_gzip_body_of_many_members_is_refused():
    assert protocols.gunzip(gzip.compress(b"ab") * 3, 100) == b"ababab"
    with pytest.raises(Refused, match="more than 16 members"):
        protocols.gunzip(gzip.compress(b"") * 100_000, 100)

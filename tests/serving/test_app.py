"""The endpoints: three protocols, and wrong requests."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random

import numpy as np
import pytest

from tests._support.closed_sets import make_classifier
from tests._support.http_calls import HTTP, encode, get, post, urllib3
from tests._support.images import damaged_jpeg
from tests._support.odd_images import ODD
from tests._support.servers import EMB_DIM, SIDE, make_image, make_model, serving
from tests._support.serving_fuzz import mutate
from tests._support.stress import stress_threads

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from plsc import ServingError, load_inference_model
from plsc.data.images import decode
from plsc.inference.paddle_serving_messages import Request, Response
from plsc.serving.app import Service
from plsc.serving.settings import ServeSettings

pytestmark = pytest.mark.server
IMAGES = [make_image(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def expected(model):
    return load_inference_model(model).embed(IMAGES)


def tensor():
    pixels = np.stack([decode(image) for image in IMAGES])
    return ((pixels.astype(np.float32) - 127.5) / 128.0).transpose(0, 3, 1, 2)


def general_request(values=None, **changes):
    values = tensor() if values is None else values
    request = Request(fetch_var_names=changes.pop("fetches", []), log_id=7)
    fields = {
        "name": "image",
        "alias_name": "image",
        "elem_type": 1,
        "shape": values.shape,
        "float_data": [values.astype("<f4").tobytes()],
        **changes,
    }
    request.tensor.add(**fields)
    return request.SerializeToString()


def test_embed_takes_an_image_a_form_or_json(server, expected):
    one = json.loads(post(server, "/embed", IMAGES[0], "image/png").data)["embeddings"]
    assert np.abs(np.asarray(one) - expected[:1]).max() < 1e-5
    form = HTTP.request("POST", server.url + "/embed", fields=[("f", ("a.png", image)) for image in IMAGES])
    listed = post(server, "/embed", {"images": encode(IMAGES)})
    for reply in (form, listed):
        assert np.abs(np.asarray(json.loads(reply.data)["embeddings"]) - expected).max() < 1e-5
    npy = post(server, "/embed", {"images": encode(IMAGES)}, Accept="application/x-npy")
    assert np.abs(np.load(io.BytesIO(npy.data)) - expected).max() < 1e-5


def test_classify_gives_what_the_model_gives(classifying):
    server, folder = classifying
    expected = load_inference_model(folder).classify(IMAGES, 3)
    one = json.loads(post(server, "/classify?k=3", IMAGES[0], "image/png").data)
    form = HTTP.request("POST", server.url + "/classify?k=3", fields=[("f", ("a.png", image)) for image in IMAGES])
    listed = json.loads(post(server, "/classify?k=3", {"images": encode(IMAGES)}).data)
    replies = (one, json.loads(form.data), listed)
    assert [reply["normalized_over"] for reply in replies] == [8] * 3
    assert [len(reply["results"]) for reply in replies] == [1, 3, 3]
    for row, other in (pair for reply in replies for pair in zip(reply["results"], expected)):
        assert [(each["name"], each["number"]) for each in row] == [(each.name, each.number) for each in other]
        assert [each["probability"] for each in row] == pytest.approx([each.probability for each in other], abs=1e-4)
        assert [each["score"] for each in row] == pytest.approx([each.score for each in other], abs=1e-5)
    assert len(json.loads(post(server, "/classify", IMAGES[0], "image/png").data)["results"][0]) == 5
    assert len(json.loads(post(server, "/classify?k=100", IMAGES[0], "image/png").data)["results"][0]) == 8
    for wrong in ("0", "101", "x"):
        assert post(server, f"/classify?k={wrong}", IMAGES[0], "image/png").status == 400


def test_classify_by_a_softmax_head_takes_lengths(tmp_path):
    folder = tmp_path / "m"
    make_classifier(folder, bias=np.linspace(-1, 1, 8).astype(np.float32))
    expected = load_inference_model(folder).classify(IMAGES, 2)
    with serving(folder, log=tmp_path / "log") as running:
        results = json.loads(post(running, "/classify?k=2", {"images": encode(IMAGES)}).data)["results"]
        embeddings = json.loads(post(running, "/embed", {"images": encode(IMAGES)}).data)["embeddings"]
    assert [[each["name"] for each in row] for row in results] == [[each.name for each in row] for row in expected]
    scores = [[each["score"] for each in row] for row in results]
    assert np.abs(np.subtract(scores, [[each.score for each in row] for row in expected])).max() < 1e-4
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_a_server_does_not_start_on_a_damaged_classifier(tmp_path):
    make_classifier(tmp_path / "m")
    file = tmp_path / "m" / "classifier.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ServingError, match="classifier.safetensors: the classifier cannot be read"):
        Service(ServeSettings(model=tmp_path / "m"))


def test_verify_gives_the_cosine_and_the_verdict(server, expected):
    reply = json.loads(post(server, "/verify", {"images": encode(IMAGES[:2])}).data)
    cosine = float(expected[0] @ expected[1])
    assert reply["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert reply["same"] == (cosine >= 0.5) and reply["threshold"] == 0.5
    assert json.loads(post(server, "/verify", {"images": encode(IMAGES[:1] * 2)}).data)["same"] is True


def test_the_face_service_of_plsc_0_1(server, expected):
    reply = json.loads(post(server, "/FaceClassifyService/inference", {"base64_string": encode(IMAGES)}).data)
    assert np.abs(np.asarray([row["embedding"] for row in reply["instance"]]) - expected).max() < 1e-5


@pytest.mark.parametrize("zipped", [False, True])
def test_the_general_model_service_in_protobuf_and_json(server, model, zipped):
    raw = load_inference_model(model).run(tensor())
    headers = {"Content_Encoding": "gzip", "Accept_Encoding": "gzip"} if zipped else {}
    pack = gzip.compress if zipped else bytes
    reply = post(server, "/GeneralModelService/inference", pack(general_request()), "application/proto", **headers)
    assert reply.headers["Content-Type"] == "application/proto"
    assert (reply.headers.get("Content-Encoding") == "gzip") == zipped
    found = Response.FromString(reply.data)
    output = found.outputs[0].tensor[0]
    assert found.log_id == 7 and output.alias_name == "embedding" and list(output.shape) == [3, EMB_DIM]
    assert np.abs(np.frombuffer(output.float_data[0], "<f4").reshape(3, -1) - raw).max() < 1e-5 * np.abs(raw).max()
    body = {
        "tensor": [
            {
                "float_data": tensor().reshape(-1).tolist(),
                "shape": [3, 3, SIDE, SIDE],
                "elem_type": 1,
                "name": "image",
                "alias_name": "image",
            }
        ],
        "fetch_var_names": ["embedding"],
        "log_id": 0,
    }
    reply = post(server, "/GeneralModelService/inference", pack(json.dumps(body).encode()), **headers)
    found = json.loads(reply.data)["outputs"][0]["tensor"][0]
    assert np.abs(np.reshape(found["float_data"], found["shape"]) - raw).max() < 1e-5 * np.abs(raw).max()


@pytest.mark.slow
def test_a_baked_model_is_served_too(tmp_path):
    make_model(tmp_path / "m", bake=("preprocess", "normalize"))
    expected = load_inference_model(tmp_path / "m").embed(IMAGES)
    with serving(tmp_path / "m", log=tmp_path / "log") as baked:
        found = np.asarray(json.loads(post(baked, "/embed", {"images": encode(IMAGES)}).data)["embeddings"])
        assert np.abs(found - expected).max() < 1e-5
        pixels = np.stack([decode(image) for image in IMAGES])
        request = Request()
        request.tensor.add(name="image", shape=pixels.shape, tensor_content=pixels.tobytes())
        reply = post(baked, "/GeneralModelService/inference", request.SerializeToString(), "application/proto")
        output = Response.FromString(reply.data).outputs[0].tensor[0]
        assert np.abs(np.frombuffer(output.float_data[0], "<f4").reshape(3, -1) - expected).max() < 1e-5
        values = {"shape": [1, SIDE, SIDE, 3], "int_data": [256] * (SIDE * SIDE * 3)}
        assert post(baked, "/GeneralModelService/inference", {"tensor": [values]}).status == 400


def test_health_metrics_and_documentation(server):
    assert get(server, "/healthz").status == 200 and json.loads(get(server, "/readyz").data)["ready"] is True
    post(server, "/embed", IMAGES[0], "image/png")
    lines = get(server, "/metrics").data.decode().splitlines()
    assert any(line.startswith('plsc_requests_total{path="/embed",status="200"}') for line in lines)
    assert "plsc_workers_ready 1.0" in lines
    assert "plsc_damaged_images_total 0.0" in lines
    assert post(server, "/embed", damaged_jpeg(), "image/jpeg").status == 200
    assert b"plsc_damaged_images_total 1.0" in get(server, "/metrics").data
    document = json.loads(get(server, "/openapi.json").data)
    assert {"/embed", "/verify", "/GeneralModelService/inference"} <= set(document["paths"])
    assert "/identify" not in document["paths"]
    page = get(server, "/").data.decode()
    assert "/embed" in page and "http://" not in page and "https://" not in page


def big_png(side):
    """A PNG that claims to be enormous."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


BAD = {
    "no image": ("/embed", b"hello", "image/png", 400, "expected one of JPEG"),
    "empty": ("/embed", b"", "image/png", 400, "empty"),
    "truncated PNG": ("/embed", IMAGES[0][:-40], "image/png", 400, "truncated PNG"),
    "truncated JPEG": ("/embed", make_image(0, 64, ".jpg")[:-500], "image/jpeg", 400, "truncated JPEG"),
    "giant dimensions": ("/embed", big_png(4000), "image/png", 413, "4000 x 4000 pixels, expected 10000"),
    "too large": ("/embed", bytes(300_000), "image/png", 413, "200000 at most"),
    "unknown type": ("/embed", b"x", "text/html", 415, "Content-Type 'text/html'"),
    "no JSON": ("/embed", b"{", "application/json", 400, "no JSON"),
    "deep JSON": ("/embed", b"[" * 100_000, "application/json", 400, "no JSON"),
    "JSON list": ("/embed", [1], "application/json", 400, "expected an object"),
    "wrong key": ("/embed", {"image": []}, "application/json", 400, 'expected "images"'),
    "no images": ("/embed", {"images": []}, "application/json", 400, "expected a list of one"),
    "no text": ("/embed", {"images": [3]}, "application/json", 400, "expected a base64 string"),
    "bad base64": (
        "/embed",
        {"images": ["a.jpg"]},
        "application/json",
        400,
        "): got 'a.jpg' of 5 characters, expected",
    ),
    "curl's own type": ("/embed", b"x", "application/x-www-form-urlencoded", 415, "curl sends this where no -H"),
    "slash behind a path": ("/embed/", b"x", "image/png", 404, "POST /embed/: Not Found; GET / lists the paths"),
    "form of a text": (
        "/embed",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nface.jpg\r\n--x--\r\n',
        "multipart/form-data; boundary=x",
        400,
        "'image' is a text; a file is sent by curl -F image=@FILE",
    ),
    "base64 of text": (
        "/FaceClassifyService/inference",
        {"base64_string": ["aGVsbG8="]},
        "application/json",
        400,
        "image 0: 5 bytes",
    ),
    "too many images": ("/embed", {"images": encode(IMAGES[:1] * 5)}, "application/json", 413, "expected 4 at most"),
    "one to verify": ("/verify", {"images": encode(IMAGES[:1])}, "application/json", 400, "expected two"),
    "form without boundary": ("/embed", b"--x", "multipart/form-data", 400, "form cannot be read"),
    "form without file": ("/embed", b"--x--\r\n", "multipart/form-data; boundary=x", 400, "no file"),
    "form cut off": (
        "/embed",
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        + IMAGES[0]
        + b'\r\n--x\r\nContent-Disposition: form-data; name="b"; filename="b"\r\n\r\n'
        + IMAGES[1][:40],
        "multipart/form-data; boundary=x",
        400,
        "the form is truncated",
    ),
    "form of too many": (
        "/embed",
        b"".join(b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nb\r\n' for _ in range(5))
        + b"--x--\r\n",
        "multipart/form-data; boundary=x",
        413,
        "the form has more images than the 4 that one request may have",
    ),
    "no classifier": ("/classify", IMAGES[0], "image/png", 404, "this model has no classifier; export it with --class"),
    "no gallery": ("/identify", IMAGES[0], "image/png", 404, "--gallery"),
    "no protobuf": ("/GeneralModelService/inference", b"\xff\xff\xff", "application/proto", 400, "no protobuf"),
    "no tensor": ("/GeneralModelService/inference", b"", "application/proto", 400, "got 0 tensors"),
    "wrong tensor name": (
        "/GeneralModelService/inference",
        general_request(name="x", alias_name="x"),
        "application/proto",
        400,
        "named 'image'",
    ),
    "wrong fetch name": (
        "/GeneralModelService/inference",
        general_request(fetches=["y"]),
        "application/proto",
        400,
        "named 'embedding'",
    ),
    "wrong shape": (
        "/GeneralModelService/inference",
        general_request(shape=[3, 3, SIDE, SIDE + 1]),
        "application/proto",
        400,
        r"expected ['N', 3, 16, 16]",
    ),
    "wrong count": (
        "/GeneralModelService/inference",
        general_request(shape=[2, 3, SIDE, SIDE]),
        "application/proto",
        400,
        "but 2304 were sent",
    ),
    "negative shape": (
        "/GeneralModelService/inference",
        general_request(shape=[-3, 3, SIDE, SIDE]),
        "application/proto",
        400,
        "1 or more",
    ),
    "overflowing shape": (
        "/GeneralModelService/inference",
        general_request(shape=[2**31 - 1, 3, SIDE, SIDE]),
        "application/proto",
        400,
        "values",
    ),
    "NaN": ("/GeneralModelService/inference", general_request(tensor() * np.nan), "application/proto", 400, "NaN"),
    "odd bytes": (
        "/GeneralModelService/inference",
        general_request(float_data=[b"abc"]),
        "application/proto",
        400,
        "multiple of 4",
    ),
    "JSON text for numbers": (
        "/GeneralModelService/inference",
        {"tensor": [{"float_data": ["a"], "shape": [1, 3, SIDE, SIDE]}]},
        "application/json",
        400,
        "numbers only",
    ),
    "JSON ragged": (
        "/GeneralModelService/inference",
        {"tensor": [{"float_data": [[1], [1, 2]], "shape": [1, 3, SIDE, SIDE]}]},
        "application/json",
        400,
        "numbers only",
    ),
    "JSON huge numbers": (
        "/GeneralModelService/inference",
        {"tensor": [{"float_data": [1e300] * 768, "shape": [1, 3, SIDE, SIDE]}]},
        "application/json",
        400,
        "too large for float32",
    ),
    "JSON shape of text": (
        "/GeneralModelService/inference",
        {"tensor": [{"float_data": [1.0], "shape": ["a"]}]},
        "application/json",
        400,
        "shape",
    ),
}


@pytest.mark.parametrize("path, body, kind, status, message", BAD.values(), ids=BAD)
def test_a_wrong_request_is_answered_with_its_reason(server, path, body, kind, status, message):
    reply = post(server, path, body, kind)
    assert reply.status == status, reply.data
    assert message in json.loads(reply.data)["error"]
    assert post(server, "/embed", IMAGES[0], "image/png").status == 200


def test_unusual_images_at_once_are_served_as_the_library_embeds_them(server, model, stress_seconds):
    images = [image for image in [*ODD.values(), damaged_jpeg(), *IMAGES] if len(image) < 150_000]
    embeddings = load_inference_model(model).embed(images, batch_size=1)

    def work(rng):
        number = int(rng.integers(len(images)))
        reply = post(server, "/embed", images[number], "application/octet-stream", Accept="application/x-npy")
        assert reply.status == 200, reply.data
        assert np.abs(np.load(io.BytesIO(reply.data)) - embeddings[number]).max() < 1e-5

    assert len(images) > 30
    assert stress_threads(work, stress_seconds) > 20


def test_an_embedding_that_is_not_finite_is_no_answer(model, monkeypatch):
    service, sent = Service(ServeSettings(model=model, access_log=False)), []

    async def diverged(kind, rows):
        return np.full([len(rows), EMB_DIM], np.nan, np.float32)

    async def receive():
        return {"type": "http.request", "body": IMAGES[0]}

    async def send(message):
        sent.append(message)

    monkeypatch.setattr(service.pool, "run", diverged)
    scope = {"type": "http", "method": "POST", "path": "/embed", "headers": [], "query_string": b""}
    asyncio.run(service.app(scope, receive, send))
    assert sent[0]["status"] == 500 and b"image 0: its embedding holds nan, expected finite" in sent[1]["body"]


def test_gzip_that_is_truncated_none_or_a_bomb(server):
    packed = gzip.compress(json.dumps({"images": encode(IMAGES)}).encode())
    for body, status, message in (
        (packed[:-20], 400, "truncated"),
        (b"hello", 400, "is not"),
        (b"", 400, "no JSON"),
        (gzip.compress(bytes(10**8)), 413, "unpacks to more than 200000"),
        (gzip.compress(gzip.compress(b"{}")), 400, "no JSON"),
    ):
        reply = post(server, "/embed", body, Content_Encoding="gzip")
        assert reply.status == status and message in json.loads(reply.data)["error"], reply.data
    assert post(server, "/embed", packed, Content_Encoding="gzip").status == 200
    assert post(server, "/embed", packed, Content_Encoding="br").status == 415


def test_other_paths_and_methods(server):
    for reply, status, message in (
        (get(server, "/nothing"), 404, "GET /nothing: Not Found"),
        (get(server, "/embed"), 405, "GET /embed: Method Not Allowed"),
    ):
        assert reply.status == status and json.loads(reply.data)["error"].startswith(message), reply.data
    assert get(server, "/embed").headers["Allow"] == "POST"


@pytest.mark.slow
def test_a_server_under_fuzz_answers_4xx_or_200_and_lives(model, tmp_path):
    rng, image = random.Random(0), make_image(0)
    form, kind = urllib3.filepost.encode_multipart_formdata([("image", ("a", image)), ("image", ("b", image))])
    listed = json.dumps({"images": encode([image])}).encode()
    face = json.dumps({"base64_string": encode([image])}).encode()
    bodies = [
        ("/embed", image, "image/png"),
        ("/embed", form, kind),
        ("/embed", listed, "application/json"),
        ("/verify", form, kind),
        ("/FaceClassifyService/inference", face, "application/json"),
        ("/GeneralModelService/inference", general_request(), "application/proto"),
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

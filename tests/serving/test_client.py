"""The client, the names of PLSC 0.1 over it, and galleries, against real servers."""

from __future__ import annotations

import base64
import json
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from tests._support.ranks import run
from tests._support.servers import EMB_DIM, make_image, make_model, serving

pytest.importorskip("urllib3", reason="urllib3 is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")

from face_service import FaceService  # noqa: E402
from plsc import DataError, ServingError, load_inference_model  # noqa: E402
from plsc.serving import Client, Gallery  # noqa: E402

IMAGES = [make_image(seed) for seed in range(10)]


@pytest.fixture(scope="module")
def expected(model):
    return load_inference_model(model).embed(IMAGES)


@pytest.fixture(scope="module")
def gallery(model, expected, tmp_path_factory):
    made = Gallery(EMB_DIM)
    made.add([f"id{number}" for number in range(10)], expected)
    folder = tmp_path_factory.mktemp("gallery") / "g"
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def servers(model, gallery, tmp_path_factory):
    """Two of them, behind a key."""
    key = {"PLSC_API_KEY": "k"}
    logs = tmp_path_factory.mktemp("log")
    flags = ["--gallery", gallery, "--threshold", 0.9]
    with (
        serving(model, *flags, log=logs / "a", environment=key) as a,
        serving(model, *flags, log=logs / "b", environment=key) as b,
    ):
        yield a, b


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# The client


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_images_of_every_kind_come_back_in_order(servers, expected, batch_size, tmp_path):
    (tmp_path / "one.png").write_bytes(IMAGES[1])
    from plsc.data.images import decode

    images = [IMAGES[0], tmp_path / "one.png", decode(IMAGES[2]), *IMAGES[3:]]
    with Client([server.url for server in servers], api_key="k") as client:
        found = client.embed(images, batch_size=batch_size, progress=True)
        assert np.abs(found - expected).max() < 1e-5
        assert np.abs(client.embed(IMAGES[0]) - expected[:1]).max() < 1e-5
        assert client.embed([]).size == 0


def test_both_servers_work(servers):
    with Client([server.url for server in servers], api_key="k") as client:
        client.embed(IMAGES * 4, batch_size=2)
    for server in servers:
        assert '"path": "/embed", "status": 200' in server.text()


def test_a_server_that_is_gone_is_made_up_for(servers, expected):
    gone = f"127.0.0.1:{free_port()}"
    with Client([gone, servers[0].url], api_key="k") as client:
        assert client.ready() == {f"http://{gone}": False, servers[0].url: True}
        assert np.abs(client.embed(IMAGES, batch_size=2) - expected).max() < 1e-5
    with Client(gone, retries=1) as client, pytest.raises(ServingError, match=f"/embed: http://{gone}: .*refused"):
        client.embed(IMAGES)


def test_what_a_server_refuses_is_told_with_its_reason_and_not_repeated(servers):
    with Client(servers[0].url) as client, pytest.raises(ServingError, match="/embed: .*: 401: no valid API key"):
        client.embed(IMAGES)
    with Client(servers[0].url, api_key="k") as client:
        with pytest.raises(ServingError, match="400: image 0: 5 bytes that begin with b'hello'"):
            client.embed(b"hello")
        with pytest.raises(ServingError, match="400: image 5: 5 bytes that begin with b'hello'"):
            client.embed([*IMAGES[:1] * 5, b"hello"], batch_size=3)
        with pytest.raises(ServingError, match="batch_size -3, expected 1 or more"):
            client.embed(IMAGES, batch_size=-3)
        with pytest.raises(DataError, match=r"image 0: got an array \[0, 0, 3\]"):
            client.embed(np.zeros((0, 0, 3), np.uint8))
        with pytest.raises(DataError, match="image 1: got int"):
            client.embed([IMAGES[0], 3])
        with pytest.raises(DataError, match="/no/such.png"):
            client.embed("/no/such.png")


def test_a_busy_server_is_asked_again_after_the_time_it_names():
    asked = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(1)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(503 if len(asked) < 3 else 200)
            self.send_header("Retry-After", "0")
            body = b'{"cosine": 0.5, "same": null, "threshold": null}'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            assert client.verify(IMAGES[0], IMAGES[1]).cosine == 0.5
            with pytest.raises(ServingError, match="no array.*is it a PLSC server"):
                client.embed(IMAGES[0])
        server.shutdown()
    assert len(asked) == 4


def test_several_busy_servers_are_given_the_time_they_name():
    asked = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(503)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as one, HTTPServer(("127.0.0.1", 0), Busy) as other:
        for server in (one, other):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = [f"http://127.0.0.1:{server.server_port}" for server in (one, other)]
        with Client(urls, retries=2) as client, pytest.raises(ServingError, match="503"):
            client.verify(IMAGES[0], IMAGES[1])
        for server in (one, other):
            server.shutdown()
    assert len(asked) == 3
    assert asked[2] - asked[0] >= 1


def test_verify_and_identify(servers):
    with Client(servers[0].url, api_key="k") as client:
        verdict = client.verify(IMAGES[0], IMAGES[0])
        assert verdict.cosine == pytest.approx(1, abs=1e-5) and verdict.same and verdict.threshold == 0.9
        (found,) = client.identify(IMAGES[3], count=2)
        assert found[0]["name"] == "id3" and found[0]["same"] is True and found[0]["cosine"] > 0.999
        assert len(found) == 2 and found[1]["cosine"] <= found[0]["cosine"]
        with pytest.raises(ServingError, match="k: got '0', expected a number from 1 to 100"):
            client.identify(IMAGES[3], count=0)


# The names of PLSC 0.1


def test_face_service_has_its_four_methods(model, expected, tmp_path):
    with serving(model, log=tmp_path / "log") as server:
        service = FaceService()
        with pytest.raises(ServingError, match=r"not connected; call connect"):
            service.encode([])
        service.connect(f"127.0.0.1:{server.port}")
        service.connect_all_server([f"127.0.0.1:{server.port}"])
        found = service.encode([base64.b64encode(image).decode() for image in IMAGES])
        assert np.abs(np.asarray(found) - expected).max() < 1e-5
        with pytest.raises(DataError, match="image 0: no base64"):
            service.encode(["a$"])
        with pytest.raises(ServingError, match="no server ready there"):
            service.connect(f"127.0.0.1:{free_port()}")
        service.close()
        service.close()


def test_plsc_server_serves(model, tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(
        f"from plsc_serving.run import PLSCServer\n"
        f"PLSCServer(with_gpu=False).with_model({str(model)!r}).run(port={free_port()}, drain=0)\n"
    )
    with (
        serving(model, log=tmp_path / "log", command=[sys.executable, str(script)]) as server,
        Client(server.url) as client,
    ):
        assert client.embed(IMAGES[0]).shape == (1, EMB_DIM)
    status, output = run(
        [sys.executable, "-c", "from plsc_serving.run import PLSCServer; PLSCServer().run()"], check=False
    )
    assert status != 0 and "no model chosen; call with_model(path) before run()" in output


# The gallery


def test_a_gallery_by_the_command_line(model, tmp_path):
    for person in ("ann", "bob"):
        (tmp_path / "faces" / person).mkdir(parents=True)
    for number, image in enumerate(IMAGES[:4]):
        (tmp_path / "faces" / ("ann" if number < 2 else "bob") / f"{number}.png").write_bytes(image)
    (tmp_path / "carl.png").write_bytes(IMAGES[4])
    (tmp_path / "report.json").write_text(json.dumps({"lfw/threshold": 0.99}))

    def plsc(*arguments, check=True):
        return run([sys.executable, "-m", "plsc", "gallery", *arguments], check=check)[1]

    assert "4 entries of 2 names" in plsc("build", model, tmp_path / "g", tmp_path / "faces")
    assert "exists and is not overwritten" in plsc("build", model, tmp_path / "g", tmp_path / "faces", check=False)
    assert "5 entries of 3 names" in plsc("add", model, tmp_path / "g", tmp_path / "carl.png")
    output = plsc(
        "search",
        model,
        tmp_path / "g",
        tmp_path / "carl.png",
        tmp_path / "faces/bob/2.png",
        "-k",
        1,
        "--report",
        tmp_path / "report.json",
    )
    found = [json.loads(line) for line in re.findall(r"^\{.*\}$", output, re.MULTILINE)]
    assert [row["matches"][0]["name"] for row in found] == ["carl", "bob"]
    assert all(row["matches"][0]["same"] and row["threshold"] == 0.99 for row in found)
    # What the same weights give otherwise packed is the same; what others give is not.
    make_model(tmp_path / "baked", bake=("normalize",))
    plsc("search", tmp_path / "baked", tmp_path / "g", tmp_path / "carl.png")
    make_model(tmp_path / "other", seed=1)
    for command in (("add",), ("search",)):
        assert "built with other weights" in plsc(
            *command, tmp_path / "other", tmp_path / "g", tmp_path / "carl.png", check=False
        )
    assert "1 entries removed, 4 left" in plsc("remove", tmp_path / "g", "carl")
    make_model(tmp_path / "other", emb_dim=8)
    assert "gallery's embeddings are of 16, the model's of 8" in plsc(
        "search", tmp_path / "other", tmp_path / "g", tmp_path / "carl.png", check=False
    )

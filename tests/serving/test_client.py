"""The client against real servers and against servers that fail."""

from __future__ import annotations

import io
import os
import pickle
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from tests._support.scripts import run_script
from tests._support.servers import EMB_DIM, free_port, make_image, serving
from tests._support.stress import compared, stress_threads

pytest.importorskip("urllib3", reason="urllib3 is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("faiss", reason="faiss-cpu is not installed")

from plsc import DataError, ServingError, load_inference_model
from plsc.data.images import decode
from plsc.serving import Client, Gallery

pytestmark = pytest.mark.server
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


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_images_of_every_kind_are_embedded_in_order(servers, expected, batch_size, tmp_path):
    (tmp_path / "one.png").write_bytes(IMAGES[1])
    images = [IMAGES[0], tmp_path / "one.png", decode(IMAGES[2]), *IMAGES[3:]]
    with Client([server.url for server in servers], api_key="k") as client:
        found = client.embed(images, batch_size=batch_size, progress=True)
        assert np.abs(found - expected).max() < 1e-5
        assert np.abs(client.embed(IMAGES[0]) - expected[:1]).max() < 1e-5
        assert client.embed([]).size == 0
        gray = decode(IMAGES[3])[..., 1]
        kinds = [Image.open(io.BytesIO(IMAGES[0])), bytearray(IMAGES[1]), io.BytesIO(IMAGES[2]), gray]
        found = client.embed(kinds, batch_size=batch_size)
        assert np.abs(found[:3] - expected[:3]).max() < 1e-5
        assert np.abs(found[3] - client.embed(np.stack([gray] * 3, axis=2))[0]).max() < 1e-5


def test_both_servers_work(servers):
    with Client([server.url for server in servers], api_key="k") as client:
        client.embed(IMAGES * 4, batch_size=2)
    for server in servers:
        assert '"path": "/embed", "status": 200' in server.text()


def test_a_server_that_is_gone_is_replaced_by_another(servers, expected):
    gone = f"127.0.0.1:{free_port()}"
    with Client([gone, servers[0].url], api_key="k") as client:
        assert client.ready() == {f"http://{gone}": False, servers[0].url: True}
        assert np.abs(client.embed(IMAGES, batch_size=2) - expected).max() < 1e-5
    refused = f"^/embed: http://{gone}: no connection: Connection refused; start the server, or correct the address$"
    with Client(gone, retries=1) as client, pytest.raises(ServingError, match=refused):
        client.embed(IMAGES)


def test_an_address_that_leads_nowhere_is_explained(servers):
    address = servers[0].url.partition("://")[2]
    with Client(f"https://{address}", retries=0) as client, pytest.raises(ServingError, match="plsc serve speaks http"):
        client.embed(IMAGES)
    with (
        Client("host.invalid", retries=0) as client,
        pytest.raises(ServingError, match="invalid: there is no such host"),
    ):
        client.embed(IMAGES)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, retries=0, timeout=0.2) as client, pytest.raises(ServingError, match="no answer within 0.2 s"):
            client.embed(IMAGES)
    for servers_given in (None, 8866, [None], [""]):
        with pytest.raises(ServingError, match="expected an address as 'http://127.0.0.1:8866', or several"):
            Client(servers_given)


def test_a_client_is_pickled(servers, expected):
    with pickle.loads(pickle.dumps(Client(servers[0].url, "k", connections=1))) as client:
        assert np.abs(client.embed(IMAGES) - expected).max() < 1e-5


def test_a_refused_request_raises_the_reason_and_is_not_repeated(servers):
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
        with pytest.raises(ServingError, match="batch_size 2.5, expected 1 or more, as a whole number"):
            client.embed(IMAGES, batch_size=2.5)
        with pytest.raises(DataError, match="image 1: got int"):
            client.embed([IMAGES[0], 3])
        with pytest.raises(DataError, match="/no/such.png"):
            client.embed("/no/such.png")


def test_a_busy_server_is_retried_after_its_pause():
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


def test_several_busy_servers_are_retried_after_their_pause():
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
        assert verdict.cosine == 1 and verdict.same and verdict.threshold == 0.9
        (found,) = client.identify(IMAGES[3], count=2)
        assert found[0]["name"] == "id3" and found[0]["same"] is True and found[0]["cosine"] > 0.999
        assert len(found) == 2 and found[1]["cosine"] <= found[0]["cosine"]
        with pytest.raises(ServingError, match="k: got '0', expected a number from 1 to 100"):
            client.identify(IMAGES[3], count=0)


def test_classify(classifying, servers):
    server, folder = classifying
    expected = load_inference_model(folder).classify(IMAGES, 2)
    with Client(server.url) as client:
        found = client.classify(IMAGES, top=2)
        assert [[each["name"] for each in row] for row in found] == [[each.name for each in row] for row in expected]
        assert set(found[0][0]) == {"name", "number", "probability", "score"}
        with pytest.raises(ServingError, match="k: got '0', expected a number from 1 to 100"):
            client.classify(IMAGES, top=0)
    with Client(servers[0].url, api_key="k") as client, pytest.raises(ServingError, match="404: .* has no classifier"):
        client.classify(IMAGES[0])


def every_call(client):
    """Each result beside the lone call's: one image, several requests, several images in one, two images."""
    calls = [lambda image=image: client.embed(image) for image in IMAGES]
    calls += [lambda: client.embed(IMAGES, batch_size=3), lambda: client.embed(IMAGES[::-1], batch_size=16)]
    calls += [lambda: np.float32(client.verify(IMAGES[0], IMAGES[1]).cosine)]
    return compared(lambda number: np.asarray(calls[number]()), len(calls))


def test_one_client_in_several_threads(servers, stress_seconds):
    with Client([server.url for server in servers], api_key="k") as client:
        assert stress_threads(every_call(client), stress_seconds) > 20


def test_one_client_in_forked_processes(servers, stress_seconds):
    urls = [server.url for server in servers]
    done = run_script(
        f"""
        from plsc.serving import Client
        from tests._support.stress import stress_processes
        from tests.serving.test_client import every_call

        client = Client({urls!r}, api_key="k")
        work = every_call(client)  # leaves connections open, which the processes inherit
        assert stress_processes(work, {stress_seconds}) > 20
        client.close()
        """
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_fork_opens_connections_of_its_own_and_leaves_the_parents_open(servers, expected):
    """Two processes on one connection read each other's replies, now and then."""
    with Client(servers[0].url, api_key="k") as client:
        client.embed(IMAGES[0])
        parents = client._http
        process = os.fork()
        if not process:
            try:
                with client:
                    is_own = client._http is not parents
                    close = np.abs(client.embed(IMAGES[1]) - expected[1]).max() < 1e-5
                os._exit(0 if is_own and close else 1)
            except BaseException:
                os._exit(2)
        assert os.waitpid(process, 0)[1] == 0
        assert client._http is parents
        assert np.abs(client.embed(IMAGES[2]) - expected[2]).max() < 1e-5
        assert parents.connection_from_url(servers[0].url).num_connections == 1

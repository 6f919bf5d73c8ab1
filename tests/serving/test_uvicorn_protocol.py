"""Limits of a connection: the size and time of heads, and the time of bodies that nobody reads."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from tests._support.http_calls import exchange
from tests._support.servers import make_image

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.server
IMAGE = make_image(0)


@pytest.mark.parametrize(
    "first, then",
    [
        (b"GET / HT", b""),
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12", b""),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12", b"34"),
    ],
)
def test_a_request_that_never_ends_is_cut_off(monkeypatch, first, then):
    import uvicorn

    from plsc.serving import uvicorn_protocol

    async def refuse(scope, receive, send):
        """By its head, with the body still to come."""
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(uvicorn_protocol, "HEAD_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(
            uvicorn.Config(
                refuse,
                http=uvicorn_protocol.LimitedProtocol,
                lifespan="off",
                log_config=None,
                timeout_keep_alive=1,
                timeout_graceful_shutdown=0,
            )
        )
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=20) as connection:
                connection.sendall(first)
                time.sleep(0.2)
                connection.sendall(then)
                begin = time.monotonic()
                while connection.recv(65536):
                    pass
                assert time.monotonic() - begin < 10
        finally:
            running.should_exit = True
            thread.join(20)


def test_a_request_that_offers_http_2_is_answered_in_http_1(server):
    # As Java's client and `curl --http2` send it; the parser would take the body for the other protocol's.
    offer = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQ",
        "Content-Type": "image/png",
    }
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)) as connection:
        for _ in range(2):
            connection.request("POST", "/embed", IMAGE, offer)
            reply = connection.getresponse()
            assert reply.status == 200 and json.loads(reply.read())["embeddings"]


def test_a_head_without_end_is_refused(server):
    for data, status in (
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000, b"431"),
        (b"nonsense\r\n\r\n", b"400"),
    ):
        head, body = exchange(server, data).split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 " + status) and json.loads(body)["error"]


def test_an_offer_of_http_2_in_pieces_is_answered_in_http_1(server):
    head = (
        f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nConnection: close, Upgrade\r\n"
        f"Upgrade: h2c\r\nContent-Length: {len(IMAGE)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(head), 7):
            connection.sendall(head[start : start + 7])
            time.sleep(0.005)
        connection.sendall(IMAGE)
        reply = b""
        while piece := connection.recv(65536):
            reply += piece
    assert reply.startswith(b"HTTP/1.1 200") and b"embeddings" in reply


@pytest.mark.parametrize("size", [1, 3, 11])
def test_requests_in_pieces_of_any_size_on_one_connection(server, size):
    requests = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2
    requests += b"\r\nGET /readyz HTTP/1.1\r\nHost: x\r\nupgrade: h2c\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(requests), size):
            connection.sendall(requests[start : start + size])
            time.sleep(0.001)
        reply = b""
        while piece := connection.recv(65536):
            reply += piece
    assert reply.count(b'{"status":"ok"}') == 2


def half_closed(server, data):
    """The reply to a client that closes its sending side behind its data, as `nc -N` does."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        reply = b""
        while piece := connection.recv(65536):
            reply += piece
    return reply


def test_a_client_that_closes_its_sending_side_is_answered(server):
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
    image = head % len(IMAGE) + IMAGE
    for _ in range(5):
        reply = half_closed(server, image)
        assert reply.startswith(b"HTTP/1.1 200") and b"embeddings" in reply
        # Several requests on the connection; the last is not whole, and gets no answer.
        for rest in (b"", head % 100 + b"abc", b"GET / HT"):
            reply = half_closed(server, health + image + health + rest)
            assert reply.count(b'{"status":"ok"}') == 2 and reply.count(b"embeddings") == 1
            assert reply.count(b"HTTP/1.1 200") == 3
    begin = time.monotonic()
    for data in (b"", b"GET / HT", head % 100 + b"abc"):
        assert half_closed(server, data) == b""
    assert time.monotonic() - begin < 5


def test_undocumented_parts_of_uvicorn_are_used_in_one_file():
    for path in (ROOT / "plsc").rglob("*.py"):
        if path.name != "uvicorn_protocol.py":
            text = path.read_text()
            assert not any(name in text for name in ("uvicorn.protocols", "uvicorn.server", "server_state")), path

"""API key, limits of bodies, and the access log."""

from __future__ import annotations

import json
import socket
import time

import pytest

from tests._support.http_calls import exchange, get, metric, post
from tests._support.servers import make_image, serving

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

pytestmark = pytest.mark.server
IMAGE = make_image(0)


def test_the_access_log_is_json_with_the_requests_own_id(server):
    reply = post(server, "/embed", IMAGE, "image/png", X_Request_Id="mine-1")
    assert reply.headers["X-Request-Id"] == "mine-1"
    for _ in range(50):
        lines = [json.loads(line) for line in server.text().splitlines() if line.startswith("{")]
        mine = [line for line in lines if line["id"] == "mine-1"]
        if mine:
            break
        time.sleep(0.05)
    assert mine[0]["status"] == 200 and mine[0]["images"] == 1 and mine[0]["path"] == "/embed" and mine[0]["ms"] > 0


def test_a_request_needs_the_key_if_one_is_set(strict):
    assert post(strict, "/embed", IMAGE, "image/png").status == 401
    assert get(strict, "/metrics").status == 401 and get(strict, "/healthz").status == 200
    assert get(strict, "/readyz").status == 200
    for headers in (
        {"Authorization": "Bearer wrong"},
        {"X_API_Key": "secre"},
        {"Authorization": "Basic secret"},
        {"Authorization": "Bearer "},
    ):
        assert post(strict, "/embed", IMAGE, "image/png", **headers).status == 401
    for headers in ({"Authorization": "Bearer secret"}, {"X_API_Key": "secret"}):
        assert post(strict, "/embed", IMAGE, "image/png", **headers).status == 200
    assert "secret" not in strict.text()


def test_a_body_that_comes_too_slowly_is_refused(strict):
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nX-API-Key: secret\r\nContent-Length: 100\r\n\r\nabc"
    begin = time.perf_counter()
    assert b" 408 " in exchange(strict, head)
    assert time.perf_counter() - begin < 5


def test_past_the_bytes_in_flight_a_request_is_answered_with_503(model, tmp_path):
    with serving(model, "--max-inflight-bytes", 1000, "--no-access-log", log=tmp_path / "log") as running:
        # A request that is alone is accepted, whatever its size.
        assert post(running, "/embed", make_image(0, 64), "image/png").status == 200
        with socket.create_connection(("127.0.0.1", running.port), timeout=15) as slow:
            slow.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + b"x" * 800)
            for _ in range(100):
                if metric(running, "plsc_held_bytes") == 800:
                    break
                time.sleep(0.05)
            reply = post(running, "/embed", IMAGE, "image/png")
        assert reply.status == 503 and reply.headers["Retry-After"] == "1"
        assert "800 bytes of requests are in flight, expected 1000 at most" in json.loads(reply.data)["error"]
        for _ in range(100):
            if metric(running, "plsc_held_bytes") == 0:
                return
            time.sleep(0.05)
        raise AssertionError("the bytes of an aborted request are still counted")

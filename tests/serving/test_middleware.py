"""API key, limits of bodies, and the access log."""

from __future__ import annotations

import json
import time

import pytest

from tests._support.http_calls import exchange, get, post
from tests._support.servers import make_image

pytest.importorskip("uvicorn", reason="plsc[serve] is not installed")

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


def test_a_key_is_wanted_where_one_is_set(strict):
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

"""Requests to a server of the tests, each an answer or an error at once: no retries."""

from __future__ import annotations

import json

import pytest

urllib3 = pytest.importorskip("urllib3", reason="urllib3 is not installed")

HTTP = urllib3.PoolManager(retries=False, timeout=120)


def post(server, path, body, kind="application/json", **headers):
    body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTP.request("POST", server.url + path, body=body, headers={"Content-Type": kind, **names})


def get(server, path, **headers):
    return HTTP.request("GET", server.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})

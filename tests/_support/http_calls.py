"""Requests to a server of the tests, without retries."""

from __future__ import annotations

import base64
import json
import socket

import pytest

urllib3 = pytest.importorskip("urllib3", reason="urllib3 is not installed")

HTTP = urllib3.PoolManager(retries=False, timeout=120)


def post(server, path, body, kind="application/json", **headers):
    body = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTP.request("POST", server.url + path, body=body, headers={"Content-Type": kind, **names})


def get(server, path, **headers):
    return HTTP.request("GET", server.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})


def encode(images):
    """Images as base64 texts."""
    return [base64.b64encode(image).decode() for image in images]


def exchange(server, data, wait=15.0):
    """Send bytes and return the reply, up to where the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def metric(server, name):
    """The value of a metric without labels."""
    found = [line for line in get(server, "/metrics").data.decode().splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[1])

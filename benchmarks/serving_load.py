"""Closed-loop clients against one server; prints one line of JSON. serving.py starts it.

It runs in the library's environment and in that of Paddle Serving. Its argument is JSON: url, kind (face, general,
pipeline_http, pipeline_grpc), image (path), tensor (path of .npy), clients, seconds.
"""

import base64
import contextlib
import io
import json
import re
import socket
import sys
import threading
import time
import types
from urllib.parse import urlsplit

import numpy as np


def main():
    given = json.loads(sys.argv[1])
    with open(given["image"], "rb") as file:
        image = base64.b64encode(file.read()).decode()
    tensor = np.load(given["tensor"])
    make = {"face": face, "general": general, "pipeline_http": pipeline_http, "pipeline_grpc": pipeline_grpc}
    calls = [make[given["kind"]](given["url"], image, tensor) for _ in range(given["clients"])]
    for call in calls:
        call()
    latencies, begin, used = [], time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=repeat, args=(call, begin + given["seconds"], latencies)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, used = time.perf_counter() - begin, time.process_time() - used
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    print(json.dumps({"p50_ms": p50, "p99_ms": p99, "per_s": len(latencies) / took, "load_cores": used / took}))


def repeat(call, end, latencies):
    while (begin := time.perf_counter()) < end:
        call()
        latencies.append(time.perf_counter() - begin)


def poster(url, path, body, kind):
    """A function that sends one request on a kept connection. Not by http.client, which would use much of the cores."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body

    def call():
        connection.sendall(request)
        reply = b""
        while (end := reply.find(b"\r\n\r\n")) < 0:
            reply += receive(reply)
        length = int(re.search(rb"(?i)\r\ncontent-length: *(\d+)", reply[:end])[1])
        while len(reply) < end + 4 + length:
            reply += receive(reply)
        if reply[9:12] != b"200":
            raise SystemExit(f"{path}: {reply[:500]}")

    def receive(reply):
        piece = connection.recv(1 << 18)
        if not piece:
            raise SystemExit(f"{path}: closed after {reply[:500]}")
        return piece

    return call


def face(url, image, tensor):
    body = json.dumps({"base64_string": [image]}).encode()
    return poster(url, "/FaceClassifyService/inference", body, "application/json")


def general(url, image, tensor):
    from plsc.inference.paddle_serving_messages import Request

    request = Request()
    request.tensor.add(name="image", shape=tensor.shape, elem_type=1, float_data=[tensor.tobytes()])
    return poster(url, "/GeneralModelService/inference", request.SerializeToString(), "application/proto")


def pipeline_http(url, image, tensor):
    return poster(
        url, "/plsc/prediction", json.dumps({"key": ["image"], "value": [image]}).encode(), "application/json"
    )


def pipeline_grpc(url, image, tensor):
    stub = types.ModuleType("paddle_serving_client")
    stub.Client = type("Client", (), {})
    sys.modules.setdefault("paddle_serving_client", stub)
    from paddle_serving_server.pipeline import PipelineClient

    client = PipelineClient()
    client.connect([url])

    def call():
        # The client prints two lines per call; the main program discards them.
        reply = client.predict({"image": tensor}, pack_tensor_format=True, use_tensor_bytes=True)
        if reply.err_no:
            raise SystemExit(reply.err_msg)

    return call


if __name__ == "__main__":
    said = io.StringIO()
    out = sys.stdout
    with contextlib.redirect_stdout(said):
        try:
            main()
        finally:
            out.write(said.getvalue().splitlines()[-1] + "\n" if said.getvalue() else "")

"""Runs in the environment of Paddle Serving: starts an exported service, sends requests over HTTP and gRPC, stops it.

Arguments: the service's folder, a .npz file of inputs, a .npz file to write.
"""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np

folder, inputs, output = sys.argv[1:]
stub = types.ModuleType("paddle_serving_client")
stub.Client = type("Client", (), {})
sys.modules["paddle_serving_client"] = stub
from paddle_serving_server.pipeline import PipelineClient  # noqa: E402

RPC, HTTP = 19998, 19082


def decode(keys, values):
    found = dict(zip(keys, values))
    return np.frombuffer(base64.b64decode(found["embedding"]), "<f4").reshape(json.loads(found["shape"]))


def by_http(body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{HTTP}/plsc/prediction", data, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def as_tensor(data):
    return {"name": "image", "elem_type": 13, "byte_data": base64.b64encode(data).decode()}


def as_array(array):
    file = io.BytesIO()
    np.save(file, array)
    return as_tensor(file.getvalue())


def ask_until_refused(answers, image):
    body = json.dumps({"key": ["image"], "value": [image]})
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", HTTP, timeout=20)
        try:
            connection.connect()
        except ConnectionRefusedError:
            answers.append("refused")
            return
        try:
            reply = None
            while reply is None or reply.getheader("Connection") != "close":
                connection.request("POST", "/plsc/prediction", body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
                reply.read()
                answers.append(reply.status)
        except OSError as error:
            answers.append(repr(error))
        connection.close()


def ask_for_one(image, expected, differences):
    """Ask for the embedding of one image again and again; how far each is from `expected`, into `differences`."""
    for _ in range(60):
        _, reply = by_http({"key": ["image"], "value": [image]})
        found = decode(reply["key"], reply["value"])
        differences.append(float(np.abs(found - expected).max()))


def by_client(client, tensor):
    with contextlib.redirect_stdout(io.StringIO()):
        return client.predict({"image": tensor}, pack_tensor_format=True, use_tensor_bytes=True)


log = open(os.path.join(os.path.dirname(output), "service.log"), "w+")  # noqa: SIM115
service = subprocess.Popen(
    [os.path.join(folder, "start.sh")],
    stdout=log,
    stderr=log,
    stdin=subprocess.DEVNULL,
    env={**os.environ, "VENV": sys.prefix, "PLSC_RPC_PORT": str(RPC), "PLSC_HTTP_PORT": str(HTTP)},
)
try:
    for _ in range(600):
        log.seek(0)
        text = log.read()
        if "ready:" in text:
            break
        assert service.poll() is None, text
        time.sleep(0.1)
    given, found = np.load(inputs), {}
    table = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    listening = [row[1] for row in table if row[3] == "0A"]
    found["addresses"] = np.array(
        [address.split(":")[0] for address in listening if int(address.split(":")[1], 16) in (RPC, HTTP)]
    )
    images = [base64.b64encode(image.tobytes()).decode() for image in given["encoded"]]
    status, reply = by_http({"key": [f"image{number}" for number in range(len(images))], "value": images})
    found["http"] = decode(reply["key"], reply["value"])
    status, reply = by_http({"key": [f"image{number}" for number in range(12)], "value": (images * 4)[:12]})
    found["http_twelve"] = decode(reply["key"], reply["value"])
    tensor = as_array(given["tensor"])
    status, reply = by_http({"tensors": [tensor]})
    found["http_bytes"] = decode(reply["key"], reply["value"])
    client = PipelineClient()
    client.connect([f"127.0.0.1:{RPC}"])
    for name in ("pixels", "tensor"):
        reply = by_client(client, given[name])
        assert reply.err_no == 0, reply.err_msg
        found[f"client_{name}"] = decode(reply.key, reply.value)
    # Threads that ask for one image each get the embedding of that image, however many threads the operator has.
    differences = []
    askers = [
        threading.Thread(target=ask_for_one, args=(image, expected, differences))
        for image, expected in zip(images * 2, [*found["http"]] * 2)
    ]
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    found["in_threads"] = np.array(differences)
    # Malformed requests get status 400, and a pickle is not loaded.
    image, photo = images[0], cv2.imencode(".jpg", given["pixels"][0])[1].tobytes()
    cut = base64.b64encode(photo[: len(photo) // 2]).decode()
    scans = base64.b64encode(photo[:2] + 101 * b"\xff\xda\x00\x02" + photo[2:]).decode()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }"
    claims = b"\x93NUMPY\x01\x00v\x00" + header.ljust(117)
    deep = b'{"a":' + b"[" * 100_000
    statuses = [
        by_http(body)[0]
        for body in (
            {"key": ["image"], "value": ["aGVsbG8="]},
            {"key": 3},
            {"key": ["x"], "value": [""]},
            {},
            deep,
            b"{",
            b"null",
            b"5",
            b"true",
            {"key": ["image", "image1"], "value": [image]},
            {"key": ["image"], "value": [image, image]},
            {"key": ["image", "image"], "value": [image, image]},
            {"key": ["image"], "value": [cut]},
            {"key": ["image"], "value": [scans]},
            {"key": ["image1"], "value": [image], "tensors": [tensor]},
            {"tensors": [tensor, tensor]},
            {"tensors": [{**tensor, "elem_type": 99}]},
            {"tensors": [{"name": "image", "elem_type": 1, "float_data": [0.0], "shape": [1, 3, 16, 16]}]},
            {"tensors": [as_tensor(b"junk")]},
            {"tensors": [as_tensor(claims)]},
            {"tensors": [as_array(np.array(3))]},
            {"tensors": [as_array(np.zeros([1, 3, 16, 17], np.float32))]},
            {"tensors": [as_array(np.zeros([300, 16, 16, 3], np.uint8))]},
        )
    ]
    found["bad"] = np.array(statuses)
    ran = os.path.join(os.path.dirname(output), "ran")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {ran}",)

    reply = by_client(client, np.array([Evil()], object))
    assert reply.err_no != 0 and not os.path.exists(ran)
    assert decode(*(lambda r: (r.key, r.value))(by_client(client, given["tensor"]))).size
    # 150 idle connections do not keep the service from answering others.
    idle = [socket.create_connection(("127.0.0.1", HTTP)) for _ in range(150)]
    assert by_http({"key": ["image"], "value": [image]})[0] == 200
    for connection in idle:
        connection.close()
    # On SIGTERM every accepted request gets its reply, and each reply asks its connection to close.
    answers = []
    clients = [threading.Thread(target=ask_until_refused, args=(answers, images[0])) for _ in range(6)]
    for thread in clients:
        thread.start()
    time.sleep(1)
    service.send_signal(signal.SIGTERM)
    for thread in clients:
        thread.join(30)
    assert service.wait(20) == 0
    found["under_load"] = np.array([str(status) for status in answers if status != "refused"])
    assert answers.count("refused") == 6
    np.savez(output, **found)
finally:
    if service.poll() is None:
        service.kill()
assert re.search("ready:", text)

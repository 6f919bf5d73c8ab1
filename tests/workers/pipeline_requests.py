"""In the environment of Paddle Serving: start an exported service, ask it by HTTP and by its own client, stop it.

Arguments: the service's folder, a .npz of inputs, a .npz to write.
"""

import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

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
    request = urllib.request.Request(f"http://127.0.0.1:{HTTP}/plsc/prediction", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def by_client(client, tensor):
    with contextlib.redirect_stdout(io.StringIO()):
        return client.predict({"image": tensor}, pack_tensor_format=True, use_tensor_bytes=True)


log = open(os.path.join(os.path.dirname(output), "service.log"), "w+")  # noqa: SIM115
service = subprocess.Popen([os.path.join(folder, "start.sh")], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                           env={**os.environ, "VENV": sys.prefix, "PLSC_RPC_PORT": str(RPC),
                                "PLSC_HTTP_PORT": str(HTTP)})
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
    found["addresses"] = np.array([address.split(":")[0] for address in listening
                                   if int(address.split(":")[1], 16) in (RPC, HTTP)])
    images = [base64.b64encode(image.tobytes()).decode() for image in given["encoded"]]
    status, reply = by_http({"key": [f"image{number}" for number in range(len(images))], "value": images})
    found["http"] = decode(reply["key"], reply["value"])
    status, reply = by_http({"key": [f"image{number}" for number in range(12)], "value": (images * 4)[:12]})
    found["http_twelve"] = decode(reply["key"], reply["value"])
    file = io.BytesIO()
    np.save(file, given["tensor"])
    tensor = {"name": "image", "elem_type": 13, "byte_data": base64.b64encode(file.getvalue()).decode()}
    status, reply = by_http({"tensors": [tensor]})
    found["http_bytes"] = decode(reply["key"], reply["value"])
    client = PipelineClient()
    client.connect([f"127.0.0.1:{RPC}"])
    for name in ("pixels", "tensor"):
        reply = by_client(client, given[name])
        assert reply.err_no == 0, reply.err_msg
        found[f"client_{name}"] = decode(reply.key, reply.value)
    # Mistakes are told, and a pickle is not run.
    found["bad"] = np.array([by_http({"key": ["image"], "value": ["aGVsbG8="]})[0], by_http({"key": 3})[0],
                             by_http({"key": ["x"], "value": [""]})[0]])
    ran = os.path.join(os.path.dirname(output), "ran")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {ran}",)

    reply = by_client(client, np.array([Evil()], object))
    assert reply.err_no != 0 and not os.path.exists(ran)
    assert decode(*(lambda r: (r.key, r.value))(by_client(client, given["tensor"]))).size
    service.send_signal(signal.SIGTERM)
    assert service.wait(20) == 0
    np.savez(output, **found)
finally:
    if service.poll() is None:
        service.kill()
assert re.search("ready:", text)

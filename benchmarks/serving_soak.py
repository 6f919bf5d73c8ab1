"""Ten minutes of full load on the HTTP server, with one request in fifty malformed.

    python benchmarks/serving_soak.py --minutes 10

Ends with status 1 if a well-formed request failed, a malformed one was not answered with 4xx, or memory grew. The
memory is the resident set of the server and its predictors, read once a second; the figures are medians per minute.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import urllib3

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from plsc.inference.paddle_serving_messages import Request  # noqa: E402
from tests._support.servers import make_model, serving  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--growth", type=float, default=2.0, help="allowed growth after the first minute, in percent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        make_model(Path(name) / "m")
        server = stack.enter_context(
            serving(Path(name) / "m", "--no-access-log", "--timeout", 60, log=Path(name) / "log")
        )
        found = soak(server, options)
    print(json.dumps(found, indent=1))
    after = found["memory_mib_per_minute"][1:] or found["memory_mib_per_minute"]
    growth = 100 * (after[-1] / after[0] - 1)
    print(f"memory after the first minute: {growth:+.2f} %")
    if found["bad_answers"] or growth > options.growth:
        raise SystemExit(1)


def soak(server, options: argparse.Namespace) -> dict:
    counts: collections.Counter = collections.Counter()
    bad_answers, latencies, memory = [], [], []
    end = time.monotonic() + 60 * options.minutes
    threads = [
        threading.Thread(target=client, args=(server.url, seed, end, counts, bad_answers, latencies))
        for seed in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        memory.append(sum(map(resident_mib, [server.process.pid, *server.worker_pids()])))
        time.sleep(1)
    for thread in threads:
        thread.join()
    minutes = [
        round(statistics.median(memory[at : at + 60]), 1) for at in range(0, len(memory), 60) if len(memory) - at >= 30
    ]
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {
        "good": counts["good"],
        "malformed": counts["malformed"],
        "bad_answers": bad_answers[:5],
        "p50_ms": round(float(p50), 1),
        "p99_ms": round(float(p99), 1),
        "memory_mib_per_minute": minutes,
    }


def client(url: str, seed: int, end: float, counts, bad_answers: list, latencies: list) -> None:
    rng, http = random.Random(seed), urllib3.PoolManager(retries=False, timeout=60)
    pixels = np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    tensor = Request()
    tensor.tensor.add(
        name="image",
        shape=[1, 3, 16, 16],
        elem_type=1,
        float_data=[np.random.default_rng(seed).normal(size=768).astype("<f4").tobytes()],
    )
    listed = json.dumps({"base64_string": [base64.b64encode(jpeg).decode()] * 2}).encode()
    good = [
        ("/embed", jpeg, "image/jpeg"),
        ("/FaceClassifyService/inference", listed, "application/json"),
        ("/GeneralModelService/inference", tensor.SerializeToString(), "application/proto"),
    ]
    while time.monotonic() < end:
        path, body, kind = rng.choice(good)
        malformed = rng.random() < 0.02
        if malformed:
            body = rng.choice([b"", body[: len(body) // 3], os.urandom(200), b"[" * 5000])
        begin = time.perf_counter()
        try:
            reply = http.request("POST", url + path, body=body, headers={"Content-Type": kind})
            status, text = reply.status, reply.data[:200]
        except urllib3.exceptions.HTTPError as error:
            status, text = 0, repr(error)
        latencies.append(time.perf_counter() - begin)
        counts["malformed" if malformed else "good"] += 1
        if not (400 <= status < 500 if malformed else status == 200):
            bad_answers.append(f"{path}, malformed={malformed}: {status}: {text!r}")


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()

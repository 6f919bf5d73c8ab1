"""Serving: the predictor alone ("raw"), the HTTP server ("embedded") and Paddle Serving's pipeline server, in one run.

    make serving-env && python benchmarks/serving.py --serving-env .venv-serving

    python benchmarks/serving.py --old ../plsc-before

With --old the HTTP server of another checkout ("old") is measured beside that of this one.

ResNet50 with random weights at 112 x 112, without mirror images, one image per request; about ten minutes. All three
run at one time and are measured in turn, in slices of a few seconds. A figure is the median over the rounds.
Differences and ratios are taken within each round, so that other load of the machine affects both sides, and then their
median. With one client the predictor alone takes one image at a time, and decodes it if the clients send JPEG. With
more clients it takes batches of its best size, decoded before. The load generator runs on the same machine; the last
column has the part of a core that it uses.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = (1, 4, 16)
IMAGES = ("base64 JPEG", "tensor bytes")
BATCHES = (1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serving-env", type=Path, help="environment of Paddle Serving, for its pipeline server")
    parser.add_argument("--old", type=Path, help="another checkout, whose server is measured too")
    parser.add_argument("--images", choices=IMAGES, nargs="+", default=IMAGES)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--model", default="ResNet50", help="name of a backbone")
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--seconds", type=float, default=4, help="length of a slice")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw:
        raw(options.raw, options.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options)
        rounds = measure(folder, options)
    rows = summarize(rounds)
    show(rows, options)
    if options.output:
        about = {key: getattr(options, key) for key in ("model", "side", "threads", "rounds", "seconds")}
        about.update(processor=processor(), paddle=importlib.metadata.version("paddlepaddle"))
        options.output.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def prepare(folder: Path, options: argparse.Namespace) -> None:
    import paddle

    from plsc.config import Config
    from plsc.export.export import export_backbone
    from plsc.models.registry import create_backbone

    paddle.seed(0)
    shape = (3, options.side, options.side)
    network = create_backbone(options.model, emb_dim=512, image_shape=shape)
    config = Config(image_shape=shape, emb_dim=512, flip=False, dataset_dir="none")
    export_backbone(network, config, directory=folder / "model", formats=("serving",))
    config_file = folder / "model" / "serving" / "config.yml"
    config_file.write_text(re.sub(r"thread_num: \d+", f"thread_num: {options.threads}", config_file.read_text()))
    rng = np.random.default_rng(0)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (options.side, options.side, 3), np.uint8), (9, 9), 0)
    cv2.imwrite(str(folder / "image.jpg"), pixels)
    np.save(folder / "tensor.npy", rng.uniform(-1, 1, [1, *shape]).astype(np.float32))


def measure(folder: Path, options: argparse.Namespace) -> list:
    """For each round, the figures of each (kind of images, number of clients, server)."""
    served = [
        sys.executable,
        "-m",
        "plsc",
        "serve",
        folder / "model",
        "--port",
        0,
        "--threads",
        options.threads,
        "--no-access-log",
    ]
    alone = subprocess.Popen(
        [sys.executable, __file__, "--raw", str(folder), "--threads", str(options.threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(options.threads),
    )
    with contextlib.ExitStack() as running:
        running.callback(alone.wait)
        running.callback(alone.stdin.close)
        url = running.enter_context(server(served, r"serving on (http://\S+)", folder / "embedded.log", {}))
        targets = {"embedded": [(sys.executable, url, "face"), (sys.executable, url, "general")]}
        if options.old:
            variables = {"PYTHONPATH": str(options.old.absolute())}
            url = running.enter_context(server(served, r"serving on (http://\S+)", folder / "old.log", variables))
            targets["old"] = [(sys.executable, url, "face"), (sys.executable, url, "general")]
        if options.serving_env:
            python = options.serving_env.absolute() / "bin" / "python"
            variables = {
                "VENV": str(options.serving_env.absolute()),
                "PLSC_RPC_PORT": "19898",
                "PLSC_HTTP_PORT": "19882",
                "OMP_NUM_THREADS": str(options.threads),
            }
            running.enter_context(
                server([folder / "model" / "serving" / "start.sh"], "(ready:)", folder / "pipeline.log", variables)
            )
            targets["pipeline"] = [
                (python, "http://127.0.0.1:19882", "pipeline_http"),
                (python, "127.0.0.1:19898", "pipeline_grpc"),
            ]

        def ask(batch: int) -> dict:
            alone.stdin.write(f"{batch} {options.seconds}\n")
            alone.stdin.flush()
            return json.loads(alone.stdout.readline())

        tried = {batch: statistics.median(ask(batch)["per_s"] for _ in range(2)) for batch in BATCHES}
        best = max(tried, key=tried.get)
        rounds = []
        for number in range(options.rounds):
            found = {}
            for index, images in enumerate(IMAGES):
                for clients in options.clients if images in options.images else ():
                    alone_name = "raw, one at a time" if clients == 1 else f"raw, batches of {best}"
                    asks = {alone_name: functools.partial(ask, index if clients == 1 else best)}
                    for what, kinds in targets.items():
                        asks[what] = functools.partial(load, *kinds[index], clients, folder, options)
                    # In alternating order, so that no server always follows the same one.
                    for what in list(asks)[:: 1 if number % 2 else -1]:
                        found[images, clients, what] = asks[what]()
            rounds.append(found)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        return rounds


def raw(folder: Path, threads: int) -> None:
    """Run the predictor alone. Reads lines of a batch size and seconds; size 0 is one image with its decoding."""
    from plsc.inference.model_card import read_model_card
    from plsc.inference.predictor import Predictor, keep_memory

    keep_memory()
    card = read_model_card(folder / "model")
    predictor = Predictor(card.model_file, threads)
    encoded = (folder / "image.jpg").read_bytes()

    def with_decoding() -> None:
        predictor.run(card.to_input(card.prepare(encoded)[None]))

    for line in sys.stdin:
        batch, seconds = int(line.split()[0]), float(line.split()[1])
        rows = np.concatenate([card.to_input(card.prepare(encoded)[None])] * max(1, batch))
        call = (lambda rows=rows: predictor.run(rows)) if batch else with_decoding
        print(json.dumps(repeat(call, seconds, max(1, batch))), flush=True)


def repeat(call, seconds: float, images: int = 1) -> dict:
    call()
    latencies, end = [], time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end or len(latencies) < 3:
        call()
        latencies.append(time.perf_counter() - begin)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return {"p50_ms": p50, "p99_ms": p99, "per_s": images * len(latencies) / sum(latencies)}


def load(python, url, kind, clients, folder, options) -> dict:
    given = {
        "url": url,
        "kind": kind,
        "clients": clients,
        "seconds": options.seconds,
        "image": str(folder / "image.jpg"),
        "tensor": str(folder / "tensor.npy"),
    }
    return json.loads(run([python, ROOT / "benchmarks" / "serving_load.py", json.dumps(given)], 1).splitlines()[-1])


def environment(threads: int) -> dict:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}


def run(command, threads: int) -> str:
    done = subprocess.run([str(part) for part in command], env=environment(threads), text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:] + done.stdout[-1000:])
    return done.stdout


@contextlib.contextmanager
def server(command, ready: str, log_file: Path, variables: dict):
    """Run a server for the `with` block; the value is the first group of the pattern in its output."""
    with open(log_file, "w") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=log_file.parent,  # Python prefers a package of the current folder
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        )
        try:
            while not (found := re.search(ready, log_file.read_text())):
                if process.poll() is not None:
                    raise SystemExit(log_file.read_text()[-3000:])
                time.sleep(0.1)
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def summarize(rounds: list) -> list:
    """Medians over the rounds. Differences and ratios are taken within each round first."""
    rows = []
    for images, clients, what in rounds[0]:
        mine = [found[images, clients, what] for found in rounds]
        row = {"images": images, "clients": clients, "what": what}
        row.update({figure: round(statistics.median(one[figure] for one in mine), 2) for figure in mine[0]})
        for name in [key[2] for key in rounds[0] if key[:2] == (images, clients) and key[2] != what]:
            others = [found[images, clients, name] for found in rounds]
            pairs = list(zip(mine, others))
            row[f"against {name.partition(',')[0]}"] = {
                "p50_ratio": round(statistics.median(one["p50_ms"] / other["p50_ms"] for one, other in pairs), 3),
                "p50_ms_more": round(statistics.median(one["p50_ms"] - other["p50_ms"] for one, other in pairs), 2),
                "per_s_ratio": round(statistics.median(one["per_s"] / other["per_s"] for one, other in pairs), 3),
            }
        rows.append(row)
    return sorted(rows, key=lambda row: (row["images"], row["clients"], row["what"] != "embedded", row["what"]))


def show(rows: list, options: argparse.Namespace) -> None:
    print(
        f"{options.model}, {options.side} x {options.side}, {options.threads} threads, medians of {options.rounds} "
        f"rounds of {options.seconds:g} s slices\n\n| images as | clients | server | p50 ms | p99 ms | images/s "
        f"| p50 minus raw, ms | images/s over raw | over pipeline | over old | p50 over old "
        f"| load generator |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        raw, pipeline, old = (row.get(f"against {name}") for name in ("raw", "pipeline", "old"))
        cells = [
            row["images"],
            row["clients"],
            row["what"],
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['per_s']:.1f}",
            f"{raw['p50_ms_more']:+.2f}" if raw and row["clients"] == 1 else "",
            f"{raw['per_s_ratio']:.2f}" if raw else "",
            f"{pipeline['per_s_ratio']:.2f}" if pipeline and row["what"] == "embedded" else "",
            f"{old['per_s_ratio']:.3f}" if old and row["what"] == "embedded" else "",
            f"{old['p50_ratio']:.3f}" if old and row["what"] == "embedded" else "",
            f"{row['load_cores']:.0%}" if "load_cores" in row else "",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")


def processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "")


if __name__ == "__main__":
    main()

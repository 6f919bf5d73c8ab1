"""The real Paddle Serving 0.9, in an environment of its own: its pipeline server with an exported service, and its
HttpClient with the embedded server. `make serving-env` builds that environment; so does the first test that needs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plsc.data.images import decode
from plsc.inference.model import load_inference_model
from tests._support.servers import make_image, make_model, serving

ROOT = Path(__file__).parents[3]
ENVIRONMENT = Path(os.environ.get("PLSC_SERVING_ENV", ROOT / ".venv-serving"))
WORKERS = ROOT / "tests" / "_support" / "workers"
IMAGES = [make_image(seed, suffix=".bmp") for seed in range(3)]


@pytest.fixture(scope="module")
def paddle_serving():
    """The interpreter of the environment of Paddle Serving."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "client" / "paddle_serving_client").is_dir():
        if not shutil.which("make"):
            pytest.skip("no environment of Paddle Serving: make is not installed")
        done = subprocess.run(
            ["make", "-C", str(ROOT), "serving-env", f"PYTHON={sys.executable}"],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=1500,
        )
        if done.returncode:
            pytest.skip(
                f"the environment of Paddle Serving cannot be built, its packages are not reachable or not "
                f"made for this Python: {' '.join(done.stdout.split())[-300:]}"
            )
    return python


def inputs(path):
    pixels = np.stack([decode(image) for image in IMAGES])
    tensor = ((pixels.astype(np.float32) - 127.5) / 128.0).transpose(0, 3, 1, 2)
    encoded = np.stack([np.frombuffer(image, np.uint8) for image in IMAGES])
    np.savez(path, pixels=pixels, tensor=np.ascontiguousarray(tensor), encoded=encoded)
    return tensor


def private_network(command):
    """The command in a network namespace of its own, with loopback only, where that is allowed."""
    inside = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    allowed = (
        shutil.which("unshare")
        and shutil.which("ip")
        and subprocess.run([*inside, "true"], capture_output=True).returncode == 0
    )
    return [*inside, *command] if allowed else command


def run(command):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        text=True,
        timeout=180,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_from_training_to_the_real_pipeline_server(entry, tmp_path, paddle_serving):
    entry.train()
    eager = entry.predict(IMAGES)
    folder = Path(entry.convert_for_prediction(tmp_path / "m", formats=("serving",))) / "serving"
    inputs(tmp_path / "in.npz")
    run(
        private_network(
            [paddle_serving, WORKERS / "pipeline_requests.py", folder, tmp_path / "in.npz", tmp_path / "out.npz"]
        )
    )
    found = np.load(tmp_path / "out.npz")
    for name in ("http", "http_bytes", "client_pixels", "client_tensor"):
        assert np.abs(found[name] - eager).max() < 1e-5, name
    assert np.abs(found["http_twelve"] - np.concatenate([eager] * 4)).max() < 1e-5
    assert found["bad"].tolist() == 23 * [400]
    assert set(found["under_load"].tolist()) == {"200"}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert len(found["addresses"]) == 2 and set(found["addresses"].tolist()) <= loopback


def test_a_baked_model_in_the_real_pipeline_server(tmp_path, paddle_serving):
    make_model(tmp_path / "m", formats=("serving",), bake=("normalize",))
    inputs(tmp_path / "in.npz")
    run(
        private_network(
            [
                paddle_serving,
                WORKERS / "pipeline_requests.py",
                tmp_path / "m" / "serving",
                tmp_path / "in.npz",
                tmp_path / "out.npz",
            ]
        )
    )
    expected = load_inference_model(tmp_path / "m").embed(IMAGES)
    assert np.abs(np.load(tmp_path / "out.npz")["http"] - expected).max() < 1e-5


def test_the_real_http_client_with_the_embedded_server(tmp_path, paddle_serving):
    make_model(tmp_path / "m", formats=("serving",))
    tensor = inputs(tmp_path / "in.npz")
    expected = load_inference_model(tmp_path / "m").run(tensor)
    with serving(tmp_path / "m", log=tmp_path / "log") as server:
        run(
            [
                paddle_serving,
                WORKERS / "http_client_requests.py",
                f"127.0.0.1:{server.port}",
                tmp_path / "m" / "serving" / "serving_client",
                tmp_path / "in.npz",
                tmp_path / "out.npz",
            ]
        )
    found = np.load(tmp_path / "out.npz")
    assert len(found.files) == 8
    for name in found.files:
        rows = expected if name.endswith("batch") else expected[:1]
        assert np.abs(found[name] - rows).max() < 1e-5 * np.abs(expected).max(), name

"""The format 'serving': its configuration, and the real Paddle Serving 0.9 in an environment of its own.

The real parts are the pipeline server, which runs an exported service, and HttpClient, which talks to plsc serve.
`make serving-env` builds that environment; so does the first test that needs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plsc import ExportError
from plsc.data.images import decode
from plsc.export.export import export_backbone
from plsc.export.formats.paddle_serving import Variable, model_config
from plsc.inference.model import load_inference_model
from plsc.inference.model_card import ABOUT_FILE
from plsc.inference.paddle_serving_messages import GeneralModelConfig
from plsc.inference.predictor import Predictor
from tests._support.exporting import IMAGES, network, settings
from tests._support.servers import make_image, make_model, serving

ROOT = Path(__file__).parents[3]
ENVIRONMENT = Path(os.environ.get("PLSC_SERVING_ENV", ROOT / ".venv-serving"))
WORKERS = ROOT / "tests" / "_support" / "workers"
ENCODED = [make_image(seed, suffix=".bmp") for seed in range(3)]

FEED, FETCH = Variable("x", "x", "float32", (3, None, -1, 112)), Variable("fc_0.tmp_1", "embedding", "float32", (512,))
TEXT = """feed_var {
  name: "x"
  alias_name: "x"
  is_lod_tensor: false
  feed_type: 1
  shape: 3
  shape: 112
}
fetch_var {
  name: "fc_0.tmp_1"
  alias_name: "embedding"
  is_lod_tensor: false
  fetch_type: 1
  shape: 512
}
"""
# FEED and FETCH as the converter of paddle-serving-client writes them, in bytes.
BYTES = b"\n\x0e\n\x01x\x12\x01x\x18\x00 \x01(\x03(p\x12\x1e\n\nfc_0.tmp_1\x12\tembedding\x18\x00 \x01(\x80\x04"


def test_serving_configuration_is_that_of_the_official_converter(tmp_path):
    export_backbone(network(), settings(), directory=tmp_path / "m", formats=("serving",), images=IMAGES)
    folder = tmp_path / "m" / "serving"
    server, client = folder / "serving_server", folder / "serving_client"
    text = (server / "serving_server_conf.prototxt").read_text()
    assert (client / "serving_client_conf.prototxt").read_text() == text
    stream = (server / "serving_server_conf.stream.prototxt").read_bytes()
    assert (client / "serving_client_conf.stream.prototxt").read_bytes() == stream
    config = GeneralModelConfig.FromString(stream)
    predictor = Predictor(server / "model.pdmodel")
    assert config.feed_var[0].name == config.feed_var[0].alias_name == predictor.input_name
    assert config.fetch_var[0].name == predictor.output_name and config.fetch_var[0].alias_name == "embedding"
    assert list(config.feed_var[0].shape) == [3, 16, 16] and list(config.fetch_var[0].shape) == [16]
    assert json.loads((folder / ABOUT_FILE).read_text())["emb_dim"] == 16


def test_text_and_bytes_of_a_serving_configuration():
    from google.protobuf import text_format

    config = model_config([FEED], [FETCH])
    assert text_format.MessageToString(config) == TEXT
    assert config.SerializeToString() == BYTES


def test_an_element_type_unknown_to_paddle_serving_is_named():
    with pytest.raises(ExportError, match="'x' is bfloat16, which Paddle Serving has no number for"):
        model_config([Variable("x", "x", "bfloat16", (3,))], [])


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
    pixels = np.stack([decode(image) for image in ENCODED])
    tensor = ((pixels.astype(np.float32) - 127.5) / 128.0).transpose(0, 3, 1, 2)
    encoded = np.stack([np.frombuffer(image, np.uint8) for image in ENCODED])
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


@pytest.mark.slow
@pytest.mark.server
def test_from_training_to_the_real_pipeline_server(entry, tmp_path, paddle_serving):
    entry.train()
    eager = entry.predict(ENCODED)
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


@pytest.mark.slow
@pytest.mark.server
def test_a_baked_model_in_the_real_pipeline_server(tmp_path, paddle_serving):
    make_model(tmp_path / "m", formats=("serving",), bake=("normalize",))
    settings = tmp_path / "m" / "serving" / "config.yml"
    settings.write_text(settings.read_text().replace("concurrency: 1", "concurrency: 4"))
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
    expected = load_inference_model(tmp_path / "m").embed(ENCODED)
    found = np.load(tmp_path / "out.npz")
    assert np.abs(found["http"] - expected).max() < 1e-5
    assert len(found["in_threads"]) == 360 and found["in_threads"].max() < 1e-5


@pytest.mark.slow
@pytest.mark.server
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

"""Fixtures that tests of several packages share: a small data set, an entry that trains on it, an exported model."""

from __future__ import annotations

import logging
import os

import cv2
import hypothesis
import pytest

import plsc
from plsc.data.verification_set import VerificationSet
from tests._support import fake_gpu
from tests._support.browser import browsing
from tests._support.images import CLASSES, SIDE, make_images
from tests._support.s3 import KEY, SECRET, s3_server
from tests._support.servers import make_model

if fake_gpu.is_asked_for():
    fake_gpu.install()

# An example takes longer where processes share the cores; the time is no part of what is tested.
hypothesis.settings.register_profile("plsc", deadline=None)
hypothesis.settings.load_profile("plsc")


def pytest_configure(config):
    if fake_gpu.is_asked_for():
        config.pluginmanager.register(fake_gpu)


def pytest_collection_modifyitems(config, items):
    """Leave out the tests that run for minutes, unless the expression of -m names them."""
    for marker in ("soak", "faults"):
        if marker not in config.option.markexpr:
            config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(marker)])
            items[:] = [item for item in items if not item.get_closest_marker(marker)]


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        import paddle

        if not paddle.device.cuda.device_count():
            pytest.skip("needs a GPU")


@pytest.fixture
def data_dir(tmp_path):
    """A folder with label.txt, images/ and lfw.bin."""
    images, labels = make_images()
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for index, (image, label) in enumerate(zip(images, labels)):
        name = f"images/{index:08d}.png"
        cv2.imwrite(str(folder / name), image[..., ::-1])
        lines.append(f"{name} {label}\n")
    (folder / "label.txt").write_text("".join(lines))
    encoded = [(folder / line.split()[0]).read_bytes() for line in lines]
    pairs = [(i, (i + CLASSES) % 30 if i % 2 else (i + 1) % 30) for i in range(20)]
    VerificationSet("lfw", [encoded[j] for pair in pairs for j in pair], is_same=[i % 2 == 1 for i in range(20)]).save(
        folder / "lfw.bin"
    )
    return folder


@pytest.fixture
def entry(data_dir, tmp_path):
    """An entry that trains on `data_dir` in a second."""
    made = plsc.Entry()
    made.set_dataset_dir(data_dir)
    made.set_class_num(CLASSES)
    made.set_image_shape((3, SIDE, SIDE))
    made.set_model_name("ResNetTiny")
    made.set_emb_size(16)
    made.set_train_batch_size(10)
    made.set_train_epochs(1)
    made.set_num_workers(0)
    made.set_scale(16)
    made.set_model_save_dir(tmp_path / "output")
    return made


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a small exported network. A test that changes it works on a copy."""
    folder = tmp_path_factory.mktemp("model") / "m"
    make_model(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. The test skips where selenium, Chromium or its driver is missing."""
    with browsing() as made:
        yield made


@pytest.fixture(scope="session")
def _s3_server():
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3_server, monkeypatch, tmp_path):
    """An S3 server with a new bucket, credentials in the environment, and an empty cache."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("plsc.remote.retrying.FIRST_WAIT", 0.01)
    # So that an injected failure reaches the library's own retries.
    monkeypatch.setattr("plsc.remote.folder._S3_LIMITS", {"read_timeout": 60, "retries": {"total_max_attempts": 1}})
    _s3_server.new_bucket()
    yield _s3_server
    _s3_server.fail("busy", 0)


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.soak)])
def stress_seconds(request):
    """How long a stress test runs: a second, or in `make soak` its share of the time; see tests/_support/stress.py."""
    if request.param == "short":
        return 1.0
    tests = [item for item in request.session.items if item.get_closest_marker("soak")]
    return float(os.environ.get("PLSC_SOAK_SECONDS", "600")) / len(tests)


@pytest.fixture(autouse=True)
def _log_reaches_caplog():
    """Add a handler to the library's logger, so that it sets up none and its messages reach the root logger."""
    logger = logging.getLogger("plsc")
    logger.addHandler(logging.NullHandler())
    logger.setLevel(logging.INFO)


@pytest.fixture(scope="session")
def onnxruntime():
    pytest.importorskip("paddle2onnx", reason="paddle2onnx or onnxruntime is not installed")
    return pytest.importorskip("onnxruntime", reason="paddle2onnx or onnxruntime is not installed")

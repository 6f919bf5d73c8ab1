"""Servers that several files of tests share."""

from __future__ import annotations

import pytest

from tests._support.closed_sets import make_classifier
from tests._support.servers import serving


@pytest.fixture(scope="session")
def server(model, tmp_path_factory):
    """A server with a threshold and small limits."""
    with serving(
        model,
        "--threshold",
        0.5,
        "--max-body",
        200_000,
        "--max-pixels",
        10_000,
        "--max-images",
        4,
        log=tmp_path_factory.mktemp("log") / "server.log",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def classifying(tmp_path_factory):
    """(a server whose model has a classifier of named classes, the model's folder)."""
    folder = tmp_path_factory.mktemp("classifying") / "m"
    make_classifier(folder, names=[f"class {number}" for number in range(8)])
    with serving(folder, log=folder.with_name("server.log")) as running:
        yield running, folder


@pytest.fixture(scope="session")
def strict(model, tmp_path_factory):
    """A server with the API key 'secret', a short timeout, a short queue and no batches."""
    with serving(
        model,
        "--timeout",
        1,
        "--max-queue",
        2,
        "--max-batch",
        1,
        "--no-access-log",
        log=tmp_path_factory.mktemp("log") / "strict.log",
        environment={"PLSC_API_KEY": "secret"},
    ) as running:
        yield running

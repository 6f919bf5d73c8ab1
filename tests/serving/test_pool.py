"""Predictor processes: one that dies is replaced, and the queue is bounded."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import time

import pytest

from tests._support.http_calls import HTTP, get, post
from tests._support.servers import make_image, make_model, serving

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

pytestmark = pytest.mark.server
IMAGES = [make_image(seed) for seed in range(3)]


@pytest.mark.slow
def test_a_predictor_that_dies_is_replaced(model, tmp_path):
    with serving(model, "--workers", 2, "--timeout", 100, log=tmp_path / "log") as running:
        first = running.worker_pids()
        assert len(first) == 2
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        # Whoever asked is served by the next process.
        assert post(running, "/embed", IMAGES[0], "image/png").status == 200
        wait_for_workers(running, 2)
        assert not set(first) & set(running.worker_pids())
        assert post(running, "/embed", IMAGES[0], "image/png").status == 200
        assert b"plsc_worker_restarts_total 2.0" in get(running, "/metrics").data


@pytest.mark.slow
def test_an_idle_predictor_that_dies_is_noticed_without_a_request(model, tmp_path):
    with serving(model, "--workers", 2, log=tmp_path / "log") as running:
        for turn in range(1, 3):
            pids = running.worker_pids()
            os.kill(pids[turn % 2], signal.SIGKILL)
            wait_for_workers(running, 1)
            assert get(running, "/readyz").status == 200
            wait_for_workers(running, 2)
            assert pids[1 - turn % 2] in running.worker_pids() and pids[turn % 2] not in running.worker_pids()
        for pid in running.worker_pids():
            os.kill(pid, signal.SIGKILL)
        wait_for_workers(running, 0)
        assert get(running, "/readyz").status == 503
        wait_for_workers(running, 2)
        assert post(running, "/embed", IMAGES[0], "image/png").status == 200
        assert b"plsc_worker_restarts_total 4.0" in get(running, "/metrics").data
        assert running.text().count("has ended while idle; starting another") == 4
        # One that dies while the server shuts down is not replaced.
        os.kill(running.worker_pids()[0], signal.SIGKILL)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) == 0 and "Traceback" not in running.text()


def wait_for_workers(running, count):
    for _ in range(600):
        if json.loads(get(running, "/readyz").data)["workers"] == count:
            return
        time.sleep(0.02)
    raise AssertionError(running.text())


@pytest.mark.slow
def test_a_predictor_does_not_start_again_with_another_model(tmp_path):
    make_model(tmp_path / "m")
    with serving(tmp_path / "m", "--timeout", 2, log=tmp_path / "log") as running:
        make_model(tmp_path / "m", seed=1)
        os.kill(running.worker_pids()[0], signal.SIGKILL)
        reply = post(running, "/embed", IMAGES[0], "image/png")
        for _ in range(200):
            if "another model has been exported there since; restart the server" in running.text():
                break
            time.sleep(0.1)
        else:
            raise AssertionError(running.text())
        assert reply.status in (503, 504) and get(running, "/readyz").status == 503


def test_a_server_that_dies_takes_its_predictors_along(model, tmp_path):
    with serving(model, log=tmp_path / "log") as running:
        (worker,) = running.worker_pids()
        running.process.kill()
        running.process.wait()
        for _ in range(100):
            if not os.path.exists(f"/proc/{worker}"):
                return
            time.sleep(0.1)
        raise AssertionError("the predictor process lives on")


def test_what_lies_in_the_current_folder_is_not_imported(model, tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('imported')\n")
    with serving(model, log=tmp_path / "log", cwd=tmp_path) as running:
        assert get(running, "/readyz").status == 200


def test_past_the_queue_it_is_503_with_retry_after_and_stopped_workers_are_504(strict):
    (worker,) = strict.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            replies = list(
                pool.map(
                    lambda _: HTTP.request(
                        "POST", strict.url + "/embed", body=IMAGES[0], headers={"X-API-Key": "secret"}
                    ),
                    range(12),
                )
            )
    finally:
        os.kill(worker, signal.SIGCONT)
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {503, 504}
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status == 503)
    assert statuses.count(504) <= 4
    for _ in range(100):
        if HTTP.request("POST", strict.url + "/embed", body=IMAGES[0], headers={"X-API-Key": "secret"}).status == 200:
            return
        time.sleep(0.1)
    raise AssertionError("it did not recover")

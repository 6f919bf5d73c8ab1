"""Start and shutdown: wrong settings are reported, and an accepted request is answered."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests._support.http_calls import HTTP, get, metric, post, urllib3
from tests._support.ranks import run
from tests._support.servers import Server, free_port, listens, make_image, serving

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

pytestmark = pytest.mark.server
IMAGES = [make_image(seed) for seed in range(3)]


@pytest.mark.alone
@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_under_load_loses_no_request(model, tmp_path, whole_group):
    replies, stop = [], threading.Event()

    def client():
        pool = urllib3.PoolManager(retries=False, timeout=30)
        while not stop.is_set():
            try:
                replies.append(pool.request("POST", running.url + "/embed", body=IMAGES[0]).status)
            except urllib3.exceptions.NewConnectionError:
                replies.append("refused")  # never accepted
                return
            except urllib3.exceptions.HTTPError as error:
                replies.append(repr(error))

    with serving(model, "--drain", 0.5, "--no-access-log", log=tmp_path / "log") as running:
        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        begin = time.monotonic()
        while replies.count(200) <= 50 and time.monotonic() - begin < 60:
            time.sleep(0.05)
        for pid in (running.worker_pids() if whole_group else []) + [running.process.pid]:
            os.kill(pid, signal.SIGTERM)
        assert running.process.wait(20) == 0
        workers_left = [thread.join(20) for thread in threads]
        stop.set()
    assert len(workers_left) == 8
    assert set(replies) == {200, "refused"}, set(replies)
    assert replies.count(200) > 50
    assert "ended unexpectedly" not in running.text()


@pytest.mark.slow
def test_requests_in_progress_at_sigterm_are_answered_after_the_drain(model, tmp_path):
    with (
        serving(model, "--timeout", 100, "--no-access-log", log=tmp_path / "log") as running,
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        (worker,) = running.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        replies = [pool.submit(post, running, "/embed", image, "image/png") for image in IMAGES * 2]
        # The predictor holds the first of them, the others wait.
        for _ in range(200):
            if int(metric(running, "plsc_held_bytes")) == 2 * sum(map(len, IMAGES)):
                break
            time.sleep(0.05)
        running.process.send_signal(signal.SIGTERM)
        # Well past the drain, when no connection is taken any more.
        for _ in range(200):
            if not listens(running):
                break
            time.sleep(0.05)
        time.sleep(1)
        assert not any(reply.done() for reply in replies) and running.process.poll() is None
        os.kill(worker, signal.SIGCONT)
        assert [reply.result().status for reply in replies] == [200] * 6
        assert running.process.wait(20) == 0


@pytest.mark.slow
def test_it_listens_on_loopback_and_reports_a_port_in_use(model, tmp_path):
    with serving(model, log=tmp_path / "log") as server:
        table = Path("/proc/net/tcp").read_text() if os.path.exists("/proc/net/tcp") else ""
        listening = [line.split()[1] for line in table.splitlines()[1:] if line.split()[3] == "0A"]
        assert [address for address in listening if int(address.split(":")[1], 16) == server.port] in (
            [f"0100007F:{server.port:04X}"],
            [],
        )
        status, output = run([sys.executable, "-m", "plsc", "serve", model, "--port", server.port], check=False)
    assert status == 1 and f"port {server.port}" in output and "choose another port with --port" in output
    assert "Traceback" not in output and output.count("Address already in use") == 1


@pytest.mark.slow
def test_the_threads_of_a_predictor_are_no_warning(model, tmp_path):
    with serving(model, "--threads", 2, log=tmp_path / "log") as server:
        assert "OMP_NUM_THREADS" not in server.text()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["/no/such/model"], "no exported model there"),
        (["{model}", "--port", "70000"], "65535"),
        (["{model}", "--gallery", "/no/such"], "no gallery there"),
        (["{model}", "--api-key-file", "/no/such"], "API key cannot be read"),
        (["{model}", "--host", "203.0.113.7", "--port", "0"], "give an address of this machine with --host"),
        (["{model}", "--host", "no such host", "--port", "0"], "give an address of this machine with --host"),
        (["{model}", "--report-set", "lfw"], "--report-set lfw names a set of a report; give the report too"),
    ],
)
def test_mistakes_at_the_start(model, flags, message):
    status, output = run(
        [sys.executable, "-m", "plsc", "serve", *(flag.format(model=model) for flag in flags)], check=False
    )
    assert status != 0 and message in output and "Traceback" not in output


def test_a_damaged_model_is_reported_before_the_server_listens(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text("{}")
    status, output = run([sys.executable, "-m", "plsc", "serve", tmp_path / "m", "--port", 0], check=False)
    assert status != 0 and "serving on" not in output and "plsc: " in output


def wait_for_port(log):
    for _ in range(600):
        found = re.search(r"listening on port (\d+)", Path(log).read_text())
        if found:
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(Path(log).read_text())


def start(model, log, *flags):
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "plsc", "serve", str(model), "--port", "0", "--drain", "0.1", *flags]
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.slow
def test_while_the_model_is_loaded_health_is_answered_and_a_signal_ends_it(model, tmp_path):
    process = start(model, tmp_path / "log")
    try:
        url = f"http://127.0.0.1:{wait_for_port(tmp_path / 'log')}"
        found = {HTTP.request("GET", url + "/healthz").status}
        ready = HTTP.request("GET", url + "/readyz")
        refused = HTTP.request("POST", url + "/embed", body=IMAGES[0])
        assert found == {200} and ready.status == 503 and json.loads(ready.data)["workers"] == 0
        assert refused.status == 503 and "is being loaded" in json.loads(refused.data)["error"]
        assert refused.headers["Retry-After"] == "1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "before the model is loaded" in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def heeded_sighup():
    """SIGHUP as a terminal starts programs: not ignored, as it is in tests that run under `nohup`."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, earlier)


@pytest.mark.slow
def test_what_is_in_progress_at_sighup_is_answered(model, tmp_path, heeded_sighup):
    with (
        serving(model, "--no-access-log", log=tmp_path / "log") as running,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        (worker,) = running.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        replies = [pool.submit(post, running, "/embed", image, "image/png") for image in IMAGES]
        time.sleep(0.3)
        # As when a terminal is closed: the whole group gets it.
        for pid in (worker, running.process.pid):
            os.kill(pid, signal.SIGHUP)
        time.sleep(0.3)
        os.kill(worker, signal.SIGCONT)
        assert [reply.result().status for reply in replies] == [200] * 3
        assert running.process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "gone"])
def test_a_log_that_cannot_be_written_ends_neither_server_nor_predictor(model, tmp_path, name):
    reader, gone = os.pipe()
    stream = gone if name == "gone" else os.open("/dev/full", os.O_WRONLY)
    port = free_port()
    command = [sys.executable, "-m", "plsc", "serve", str(model), "--port", str(port), "--threads", "2"]
    process = subprocess.Popen(
        [*command, "--drain", "0.1", "--timeout", "20"],
        stdout=stream,
        stderr=stream,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    running = Server(process, f"http://127.0.0.1:{port}", tmp_path / "none")
    try:
        for _ in range(600):
            assert process.poll() is None
            if listens(running) and get(running, "/readyz").status == 200:
                break
            time.sleep(0.05)
        os.close(reader)
        expected = post(running, "/embed", IMAGES[0], "image/png").data
        for _ in range(2):
            (worker,) = running.worker_pids()
            os.kill(worker, signal.SIGKILL)
            assert post(running, "/embed", IMAGES[0], "image/png").data == expected
        assert get(running, "/readyz").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        for descriptor in {gone, stream}:
            os.close(descriptor)

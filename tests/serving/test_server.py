"""The embedded server's failures, start and end: what dies is replaced, what was accepted is answered."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from tests._support.http_calls import get, post, urllib3
from tests._support.ranks import run
from tests._support.servers import make_image, make_model, serving

pytest.importorskip("uvicorn", reason="plsc[serve] is not installed")

IMAGES = [make_image(seed) for seed in range(3)]


def test_a_predictor_that_dies_is_replaced(model, tmp_path):
    with serving(model, "--workers", 2, "--timeout", 100, log=tmp_path / "log") as running:
        first = running.worker_pids()
        assert len(first) == 2
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        # Whoever asked is served by the next process.
        assert post(running, "/embed", IMAGES[0], "image/png").status == 200
        for _ in range(300):
            if json.loads(get(running, "/readyz").data)["workers"] == 2 and len(running.worker_pids()) == 2:
                break
            # A dead process is noticed when it is next used.
            post(running, "/embed", IMAGES[0], "image/png")
            time.sleep(0.1)
        assert not set(first) & set(running.worker_pids())
        assert post(running, "/embed", IMAGES[0], "image/png").status == 200
        assert b"plsc_worker_restarts_total 2.0" in get(running, "/metrics").data


def test_what_lies_in_the_current_folder_is_not_imported(model, tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('imported')\n")
    with serving(model, log=tmp_path / "log", cwd=tmp_path) as running:
        assert get(running, "/readyz").status == 200


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
    assert "ended unasked" not in running.text()


def test_what_is_under_way_at_sigterm_is_answered_however_long_it_takes(model, tmp_path):
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


def metric(server, name):
    found = [line for line in get(server, "/metrics").data.decode().splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[1])


def listens(server):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == 0


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


def test_it_listens_on_loopback_and_says_when_a_port_is_taken(model, tmp_path):
    with serving(model, log=tmp_path / "log") as server:
        table = Path("/proc/net/tcp").read_text() if os.path.exists("/proc/net/tcp") else ""
        listening = [line.split()[1] for line in table.splitlines()[1:] if line.split()[3] == "0A"]
        assert [address for address in listening if int(address.split(":")[1], 16) == server.port] in (
            [f"0100007F:{server.port:04X}"],
            [],
        )
        status, output = run([sys.executable, "-m", "plsc", "serve", model, "--port", server.port], check=False)
    assert status == 1 and f"port {server.port}" in output and "choose another --port" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "flags, message",
    [
        (["/no/such/model"], "no exported model there"),
        (["{model}", "--port", "70000"], "65535"),
        (["{model}", "--gallery", "/no/such"], "no gallery there"),
        (["{model}", "--api-key-file", "/no/such"], "API key cannot be read"),
    ],
)
def test_mistakes_at_the_start(model, flags, message):
    status, output = run(
        [sys.executable, "-m", "plsc", "serve", *(flag.format(model=model) for flag in flags)], check=False
    )
    assert status != 0 and message in output and "Traceback" not in output


def test_a_damaged_model_is_told_before_anything_is_served(model, tmp_path):
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text("{}")
    status, output = run([sys.executable, "-m", "plsc", "serve", tmp_path / "m", "--port", 0], check=False)
    assert status != 0 and "serving on" not in output and "plsc: " in output


@pytest.mark.parametrize(
    "first, then",
    [
        (b"GET / HT", b""),
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12", b""),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12", b"34"),
    ],
)
def test_a_request_that_never_ends_is_cut_off(monkeypatch, first, then):
    import uvicorn

    from plsc.serving import uvicorn_protocol

    async def refuse(scope, receive, send):
        """By its head, with the body still to come."""
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    monkeypatch.setattr(uvicorn_protocol, "HEAD_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = uvicorn.Server(
            uvicorn.Config(
                refuse,
                http=uvicorn_protocol.LimitedProtocol,
                lifespan="off",
                log_config=None,
                timeout_keep_alive=1,
                timeout_graceful_shutdown=0,
            )
        )
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=20) as connection:
                connection.sendall(first)
                time.sleep(0.2)
                connection.sendall(then)
                begin = time.monotonic()
                while connection.recv(65536):
                    pass
                assert time.monotonic() - begin < 10
        finally:
            running.should_exit = True
            thread.join(20)


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

"""Signals that ask a run to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from plsc import CheckpointError, Interrupted, NotSavedError
from plsc.checkpoint import Checkpoint, list_checkpoints
from plsc.data.verification_set import VerificationSet
from plsc.engine import saver, stopping
from plsc.engine.observers import Observer
from plsc.engine.stopping import StopRequest
from plsc.engine.trainer import Trainer
from tests._support.ranks import ROOT, WORKERS, launch

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def default_handlers():
    """Those of a process that a shell starts; the test runner may have others."""
    defaults = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Kill(Observer):
    """Sends a signal to the process at an event of a run."""

    def __init__(self, number, event, step):
        self.number, self.event, self.step = number, event, step

    def on_start(self, run):
        if self.event == "start":
            os.kill(os.getpid(), self.number)

    def on_step(self, step):
        if self.event == "step" and step.number == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def run(entry):
    """Two epochs of three steps."""
    entry.set_train_epochs(2)
    entry.set_with_test(False)
    return entry


def contents(folder):
    saved = Checkpoint(folder)
    return {name: saved.read(name) for name in saved.names("")}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "event, step, saved", [("start", 0, "0.1"), ("step", 1, "0.2"), ("step", 2, "0"), ("step", 3, "1.1")]
)
def test_a_signal_loses_and_repeats_nothing(run, tmp_path, caplog, number, event, step, saved):
    """The step during which it arrives, and the next, which has begun on the device, are saved."""
    run.train()
    whole = contents(tmp_path / "output")
    run.set_model_save_dir(tmp_path / "stopped")
    with pytest.raises(Interrupted, match=f"stopped by {number.name}: training up to step") as raised:
        Trainer(run.config, observers=[Kill(number, event, step)]).train()
    assert raised.value.code == 75
    newest = list_checkpoints(tmp_path / "stopped")[-1]
    assert newest.name == saved
    assert str(newest) in caplog.text
    run.set_checkpoint_dir(tmp_path / "stopped")
    run.train()
    found = contents(tmp_path / "stopped")
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert len({json.loads(line)["step"] for line in lines}) == len(lines)


def test_a_run_that_is_done_ends_as_one_without_a_signal(run):
    assert Trainer(run.config, observers=[Kill(signal.SIGTERM, "step", 6)]).train()["loss"]


class Killing(list):
    """Images, one of which sends a signal when it is read after training began."""

    armed = False

    def __iter__(self):
        for number, image in enumerate(super().__iter__()):
            if number == 3 and Killing.armed:
                os.kill(os.getpid(), signal.SIGTERM)
            yield image

    def __getitem__(self, index):
        return Killing(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)


def test_a_signal_during_verification_ends_it(run, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = Killing(rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8))
    run.test_dataset = VerificationSet("faces", images, is_same=[i % 2 == 1 for i in range(20)])
    run.test_dataset.images = images
    run.set_with_test(True)
    run.set_test_batch_size(2)

    class Arm(Observer):
        def on_step(self, step):
            Killing.armed = True

        def on_verify(self, step, results):
            raise AssertionError("the verification was not stopped")

    try:
        with pytest.raises(Interrupted, match="training up to step 3 is saved"):
            Trainer(run.config, observers=[Arm()]).train()
    finally:
        Killing.armed = False
    assert [path.name for path in list_checkpoints(tmp_path / "output")] == ["0"]


def test_handlers_are_put_back(run):
    before = [signal.getsignal(number) for number in SIGNALS]
    run.train()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_is_repeated_while_a_stopped_process_ends_has_no_effect(run, monkeypatch):
    monkeypatch.setattr(stopping, "_REPEATED", 600)
    with pytest.raises(Interrupted):
        Trainer(run.config, observers=[Kill(signal.SIGINT, "step", 1)]).train()
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(stopping, "_REPEATED", 0)
    with pytest.raises(KeyboardInterrupt):  # a later one has the effect that it had before
        os.kill(os.getpid(), signal.SIGINT)


def test_a_stopped_process_may_train_again_and_be_stopped_again(run, tmp_path):
    for step in (1, 3):
        run.set_auto_resume(True)
        with pytest.raises(Interrupted, match=f"training up to step {step + 1} is saved"):
            Trainer(run.config, observers=[Kill(signal.SIGTERM, "step", step)]).train()


def test_a_stopped_process_has_its_status_though_signals_go_on():
    """Also while the interpreter ends, which takes the handlers away."""
    script = (
        "import atexit, os, signal, sys, time\n"
        "from plsc.engine.stopping import StopRequest\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.1)))\n"
        "with StopRequest().heeded(at_once=True):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60).returncode == 75


def test_a_signal_while_paddle_is_imported_is_heeded():
    """Its import replaces the handlers."""
    script = (
        "import os, signal, sys\n"
        "from plsc.engine.stopping import held_back\n"
        "with held_back():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    import paddle\n"
        "sys.exit('not stopped')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=120, stderr=subprocess.PIPE)
    assert done.returncode == 75, done.stderr


def test_a_signal_stops_the_tries_at_the_end_of_a_run(run, monkeypatch):
    def fail(*arguments, **options):
        raise CheckpointError("no space left on device")

    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 7:  # in the second pause
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(saver, "write_parts", fail)
    monkeypatch.setattr(saver.time, "sleep", sleep)
    with pytest.raises(NotSavedError) as raised:
        run.train()
    assert raised.value.code == 74
    assert sum(slept) == 5 + 2 + sum(saver.STOP_PAUSES)


def test_what_could_not_be_saved_is_the_last_line(run, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise CheckpointError("no space left on device")

    monkeypatch.setattr(saver, "write_parts", fail)
    monkeypatch.setattr(saver, "LAST_PAUSES", ())
    with pytest.raises(NotSavedError):
        run.train()
    assert caplog.messages[-1].endswith("was not written: no space left on device; no further try")


def test_a_handler_of_the_users_stays(run):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        Trainer(run.config, observers=[Kill(signal.SIGUSR1, "step", 1)]).train()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


def test_a_signal_before_the_first_step_ends_at_once(caplog):
    with (
        pytest.raises(Interrupted, match="stopped by SIGTERM before the first step") as raised,
        StopRequest().heeded(at_once=True),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert raised.value.code == 75
    assert "stopped by SIGTERM before the first step" in caplog.text


def test_a_signal_interrupts_no_call_of_the_system():
    """Where it does, Paddle's store raises: the ranks then take a sound one for lost."""
    script = (
        "import os, signal, socket, threading, time\n"
        "from paddle.base import core\n"
        "from plsc.engine.stopping import StopRequest\n"
        "with socket.create_server(('127.0.0.1', 0)) as free:\n"
        "    port = free.getsockname()[1]\n"
        "store = core.TCPStore('127.0.0.1', port, True, 1, 60)\n"
        "def act():\n"
        "    time.sleep(1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.5)\n"
        "    core.TCPStore('127.0.0.1', port, False, 1, 60).set('late', 'x')\n"
        "with StopRequest().heeded():\n"
        "    threading.Thread(target=act).start()\n"
        "    print(bytes(store.get('late')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, capture_output=True, text=True)
    assert "b'x'" in done.stdout, done.stderr


def test_repeated_signals_are_one():
    stop = StopRequest()
    with stop.heeded():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
    assert stop.name == "SIGINT"


def test_other_threads_train_without_signals(run):
    failures = []

    def work():
        try:
            run.train()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def test_a_second_signal_ends_the_process_at_once():
    script = (
        "import os, signal, time\n"
        "from plsc.engine import stopping\n"
        "stopping._REPEATED = 0.2\n"
        "with stopping.StopRequest().heeded():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.5)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60).returncode == -signal.SIGTERM


def settings_of(folder, **settings):
    return json.dumps(
        {
            "model": "batch norm",
            "num_workers": 0,
            "model_save_dir": str(folder / "output"),
            "train_batch_size": 6,
            "train_epochs": 2,
            **settings,
        }
    )


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_makes_all_ranks_save_the_same_step(number, tmp_path):
    """A signal to Paddle's launcher reaches all ranks, which save the same step."""
    command = [
        *(sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"),
        *("--log_dir", tmp_path / "log", WORKERS / "train_worker.py", settings_of(tmp_path, train_epochs=5000)),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PADDLE_")}
    environment.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    with open(tmp_path / "launcher", "w") as output:
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=output, stderr=output)
    metrics = tmp_path / "output" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(60)
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in range(2)]
    found = list_checkpoints(tmp_path / "output")
    assert found, [(tmp_path / "launcher").read_text(), *logs]
    assert f"is saved in {found[-1]}; start again" in logs[0]
    assert not list((tmp_path / "output").glob(".*"))
    assert "Traceback" not in "".join(logs)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "way, error, code, words",
    [
        ("signal", "Interrupted", 75, "stopped by SIGUSR1 before the first step"),
        ("disk", "NotSavedError", 74, "No space left on device; no further try"),
    ],
)
def test_all_ranks_end_alike_whichever_is_the_cause(tmp_path, rank, way, error, code, words):
    status, output = launch(2, "ending_worker.py", tmp_path, way, rank, log_dir=tmp_path / "log", check=False)
    assert status == code, output
    for number in range(2):
        lines = (tmp_path / "log" / f"workerlog.{number}").read_text().splitlines()
        assert f"ENDS {number} {error}" in lines
        assert [line for line in lines if line.endswith(words)]
        assert "Traceback" not in "".join(lines)

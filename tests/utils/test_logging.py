"""The log and progress bars on a standard error that is missing, closed, full, or an object of the application's."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest

from plsc.utils import logging as logs


class OnlyWrite:
    """A stream with nothing but `write`, as some applications set."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


class ClosedTerminal(io.StringIO):
    def isatty(self) -> bool:
        raise OSError(5, "Input/output error")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = [lambda: None, closed, object, OnlyWrite, Broken, ClosedTerminal]


@pytest.fixture
def log(monkeypatch):
    """The library's log with its own handler only."""
    logger = logging.getLogger("plsc")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    logs.show_log(is_main=True)
    return logger


@pytest.mark.parametrize("stream", STREAMS)
def test_neither_log_nor_bar_fails_or_takes_standard_output(stream, log, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", stream())
    log.warning("a line")
    assert list(logs.progress_bar(range(3), "title")) == [0, 1, 2]
    with logs.progress_bar(total=3) as bar:
        bar.update(3)
    assert capsys.readouterr().out == ""


def test_a_stream_that_can_be_written_gets_the_log(log, monkeypatch):
    monkeypatch.setattr(sys, "stderr", OnlyWrite())
    log.warning("a line")
    assert sys.stderr.text.endswith("a line\n")


def test_a_terminal_is_recognized():
    main, terminal = os.openpty()
    with open(terminal, "w") as stream:
        assert logs.is_terminal(stream)
    os.close(main)
    assert not any(logs.is_terminal(stream()) for stream in STREAMS)


def test_no_file_takes_the_place_of_a_closed_descriptor(tmp_path):
    script = "from plsc.utils.logging import hold_standard_descriptors as hold; hold(); print(open('x', 'w').fileno())"
    for closing in ("2>&-", "<&- 2>&-", ""):
        command = f'exec "{sys.executable}" -c "{script}" {closing}'
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, env=environment())
        assert done.returncode == 0 and int(done.stdout) >= 3


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_text_that_cannot_be_written_does_not_stick_to_a_lossy_stream(unbuffered):
    script = (
        "import sys; from plsc.utils.logging import guard_standard_error as guard, lossy; guard(); guard()\n"
        "print('lost', file=sys.stderr); sys.stderr.flush(); sys.stderr.write('a' * 100_000)\n"
        "assert lossy(sys.stderr) is sys.stderr; print('kept', file=lossy(sys.stdout))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=full,
            env={**environment(), "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 0 and done.stdout == b"kept\n"


def test_a_reader_that_has_seen_enough_leaves_no_trace():
    script = (
        "from plsc.utils.logging import guard_standard_output as guard; guard()\n"
        "try:\n    print('a' * 1_000_000)\nexcept BrokenPipeError:\n    print('more')"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", script], stdout=writing, stderr=subprocess.PIPE, env=environment())
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("stream", STREAMS)
def test_streams_that_are_no_files_stay_as_they_are(stream):
    made = stream()
    assert logs.lossy(made) is made

"""How checks are run and what they find is told: none raises, none hangs, and no secret is in a report."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from plsc.doctor import findings
from plsc.doctor.children import Child, run_children
from plsc.doctor.examination import GROUPS, examine, lines_of, report, summary, worst_state
from plsc.doctor.findings import CHECKS, RegisteredCheck, Request, fault, ok, warning
from plsc.utils.json_text import to_json


def found_by(function, seconds=5.0):
    return list(examine(Request(), [RegisteredCheck("example", function, seconds)]))


def broken(message, kind=ValueError):
    def check(request):
        raise kind(message)

    return check


def test_findings_come_in_order_with_the_name_of_their_check():
    made = [ok("one"), warning("two", means="m", cure="c"), fault("three", means="m", cure="c")]
    found = found_by(lambda request: iter(made))
    assert [(each.check, each.state, each.seen) for each in found] == [
        ("example", "ok", "one"),
        ("example", "warning", "two"),
        ("example", "fault", "three"),
    ]


@pytest.mark.parametrize("kind", [ValueError, KeyError, OSError, MemoryError, SystemExit, KeyboardInterrupt])
def test_a_check_that_fails_is_a_finding(kind):
    (found,) = found_by(broken("no such thing", kind))
    assert found.state == "warning" and f"the check failed: {kind.__name__}: " in found.seen
    assert "no such thing" in found.seen and found.cure


def test_a_check_that_hangs_is_a_finding():
    start = time.monotonic()
    (found,) = found_by(lambda request: time.sleep(60) or [], seconds=0.2)
    assert found.seen == "the check did not end within 0.2 s" and time.monotonic() - start < 10


def test_no_secret_is_told(monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    made = ok("/home/alice/data and s3://key:secret@bucket/run")
    (found,) = found_by(lambda request: [made])
    assert found.seen == "~/data and s3://bucket/run"
    (found,) = found_by(broken("/home/alice/.cache: denied"))
    assert "~/.cache: denied" in found.seen


def test_a_home_that_is_the_root_hides_no_path(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    assert found_by(lambda request: [ok("/data/faces")])[0].seen == "/data/faces"


@pytest.mark.parametrize(
    "made, state, words",
    [
        ([ok("a")], "ok", "no fault and no warning"),
        ([ok("a"), warning("b", means="m", cure="c")], "warning", "1 warning"),
        ([fault("a", means="m", cure="c"), warning("b", means="m", cure="c")] * 2, "fault", "2 faults, 2 warnings"),
    ],
)
def test_a_report_has_the_worst_state(made, state, words):
    assert worst_state(made) == report(made)["state"] == state and summary(made) == words


def test_a_report_is_json():
    made = found_by(lambda request: [warning("b", means="m", cure="c")])
    told = json.loads(to_json(report(made)))
    assert set(told) == {"plsc", "python", "state", "findings"}
    assert told["findings"] == [{"check": "example", "state": "warning", "seen": "b", "means": "m", "cure": "c"}]


def test_a_finding_is_told_in_lines_of_the_terminal_with_its_meaning_and_cure():
    made = found_by(lambda request: [warning("seen " * 20, means="meaning " * 20, cure="healing " * 20)])
    lines = lines_of(made[0], 80).splitlines()
    assert lines[0].startswith("warning  example") and all(len(line) <= 80 for line in lines)
    assert sum("means: " in line for line in lines) == sum("cure: " in line for line in lines) == 1
    assert " ".join(lines).count("healing") == 20


def test_every_check_is_registered_once_and_says_what_to_do():
    names = [each.name for each in CHECKS]
    assert len(set(names)) == len(names) >= 12
    assert {each.function.__module__ for each in CHECKS} == {group.__name__ for group in GROUPS}


def test_a_check_is_added_by_a_decorator(monkeypatch):
    monkeypatch.setattr(findings, "CHECKS", [])

    @findings.check("clock", seconds=3.0)
    def clock(request):
        return [ok("it is set")]

    assert [RegisteredCheck("clock", clock, 3.0)] == findings.CHECKS


# Processes


def python(code):
    return [sys.executable, "-c", code]


def test_processes_run_at_the_same_time_and_give_their_answer():
    code = "print('noise'); print('{\"rank\": 1}'); print('{noise')"
    children = run_children([python(code)] * 2, environments=[dict(os.environ)] * 2, seconds=60)
    assert [child.answer() for child in children] == [{"rank": 1}] * 2


@pytest.mark.parametrize(
    "code, reason",
    [
        ("raise ValueError('no GPU')", "ValueError: no GPU"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it was ended by SIGSEGV"),
        ("print('nothing')", "it gave no answer"),
    ],
)
def test_a_process_without_an_answer_gives_a_reason(code, reason):
    (child,) = run_children([python(code)], environments=[dict(os.environ)], seconds=60)
    assert child.answer() is None and reason in child.reason()


def test_a_process_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    (child,) = run_children([python(code)], environments=[dict(os.environ)], seconds=3)
    assert child.status is None and "did not end in time" in child.reason()
    deadline = time.monotonic() + 20
    while any(is_alive(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_others_are_ended_soon_after_one_has_failed(monkeypatch):
    monkeypatch.setattr("plsc.doctor.children._AFTER_FAILURE", 0.5)
    start = time.monotonic()
    first, second = run_children(
        [python("import sys; sys.exit('no')"), python("import time; time.sleep(600)")],
        environments=[dict(os.environ)] * 2,
        seconds=300,
    )
    assert (first.status, second.status) == (1, None) and time.monotonic() - start < 60


def test_a_process_that_does_not_exist_raises_and_leaves_none_behind():
    with pytest.raises(OSError):
        run_children([python("import time; time.sleep(600)"), ["/no/such"]], environments=[{}, {}], seconds=5)


def test_the_last_line_of_an_error_is_its_reason():
    assert Child(1, "", "Traceback\n  File\nValueError: last\n\n").reason() == "ValueError: last"
    assert "wrote no message" in Child(-6, "", "").reason() and "SIGABRT" in Child(-6, "", "").reason()

"""Runs the checks one after the other, and tells what they find."""

from __future__ import annotations

import dataclasses
import platform
import queue
import textwrap
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plsc.doctor import basics, devices, machine, ranks, storage
from plsc.doctor.findings import CHECKS, Finding, RegisteredCheck, Request, warning
from plsc.utils.locations import without_credentials
from plsc.utils.plural import counted
from plsc.version import __version__

# Each registers its checks where it is imported.
GROUPS = (basics, devices, machine, ranks, storage)

_WIDTH = 18  # of the names of checks


def examine(request: Request, checks: Sequence[RegisteredCheck] = CHECKS) -> Iterator[Finding]:
    """The findings of all checks, each as soon as it is known. Nothing is raised but what stops the process.

    Args:
        request: what to examine.
        checks: by default all that are registered.
    """
    for registered in checks:
        for finding in _run(registered, request):
            seen, means, cure = map(_without_secrets, (finding.seen, finding.means, finding.cure))
            yield dataclasses.replace(finding, check=registered.name, seen=seen, means=means, cure=cure)


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings for a bug report, as JSON holds them."""
    found = list(findings)
    return {
        "plsc": __version__,
        "python": platform.python_version(),
        "state": worst_state(found),
        "findings": [dataclasses.asdict(finding) for finding in found],
    }


def worst_state(findings: Iterable[Finding]) -> str:
    """'fault' where there is one, else 'warning' where there is one, else 'ok'."""
    states = {finding.state for finding in findings}
    return next((state for state in ("fault", "warning") if state in states), "ok")


def summary(findings: Sequence[Finding]) -> str:
    """How many findings of each kind there are, in words."""
    counts = {state: sum(finding.state == state for finding in findings) for state in ("fault", "warning")}
    told = [counted(number, state) for state, number in counts.items() if number]
    return ", ".join(told) if told else "no fault and no warning"


def lines_of(finding: Finding, width: int) -> str:
    """A finding as text.

    Args:
        finding: to show.
        width: of the lines, in characters.
    """
    head = f"{finding.state:<8} {finding.check:<{_WIDTH}} "
    rest = [f"{name}: {text}" for name, text in (("means", finding.means), ("cure", finding.cure)) if text]
    room = max(width - len(head), 40)
    lines = [line for text in (finding.seen, *rest) for line in textwrap.wrap(text, room, break_long_words=False)]
    return "\n".join((head if not number else " " * len(head)) + line for number, line in enumerate(lines))


def _run(registered: RegisteredCheck, request: Request) -> list[Finding]:
    """The findings of one check. It runs in a thread, which is left alone where it hangs, as on a dead network."""
    results: queue.Queue[list[Finding]] = queue.Queue()

    def run() -> None:
        try:
            results.put(list(registered.function(request)))
        except BaseException as error:  # a check may meet anything, SystemExit too
            results.put([_failure(f"the check failed: {type(error).__name__}: {error}")])

    threading.Thread(target=run, daemon=True, name=f"check of {registered.name}").start()
    try:
        return results.get(timeout=registered.seconds)
    except queue.Empty:
        return [_failure(f"the check did not end within {registered.seconds:g} s")]


def _failure(seen: str) -> Finding:
    return warning(
        seen,
        means="what it examines is not known",
        cure="look at what the message names; where that is sound, report it with what plsc doctor prints as JSON",
    )


def _without_secrets(text: str) -> str:
    """A text for strangers: ~ for the user's home, URLs without credentials."""
    home = str(Path.home())
    text = without_credentials(text)
    return text if len(home) < 2 else text.replace(home, "~")

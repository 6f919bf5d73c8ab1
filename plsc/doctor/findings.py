"""Findings, and the registry of the checks that make them.

A check is a function from a `Request` to findings, registered by `check`. One that fails or hangs becomes a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from plsc.doctor.paddle_facts import PaddleFacts

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check has found.

    Attributes:
        state: 'ok'; 'warning' for what slows training down or may end it; 'fault' for what makes it impossible.
        seen: what was found, with its numbers.
        means: what follows from it; empty where all is well.
        cure: what to do; empty where all is well.
        check: the name of the check, which the examination fills in.
    """

    state: State
    seen: str
    means: str = ""
    cure: str = ""
    check: str = ""


def ok(seen: str) -> Finding:
    """A finding of what is as it should be."""
    return Finding(state="ok", seen=seen)


def warning(seen: str, *, means: str, cure: str) -> Finding:
    """A finding of what slows training down, or may end it."""
    return Finding(state="warning", seen=seen, means=means, cure=cure)


def fault(seen: str, *, means: str, cure: str) -> Finding:
    """A finding of what makes training impossible."""
    return Finding(state="fault", seen=seen, means=means, cure=cure)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is examined.

    Attributes:
        save_dir: the folder of checkpoints, which need not exist.
        dataset_dir: the training data as `open_records` takes it; None for none.
        paddle: asks Paddle, in a process of its own, once.
    """

    save_dir: Path = Path("output")
    dataset_dir: str | None = None
    paddle: PaddleFacts = field(default_factory=PaddleFacts)


Check = Callable[[Request], Iterable[Finding]]


class RegisteredCheck(NamedTuple):
    """Attributes: `name`, shown with each finding; `function`; `seconds`, after which the check counts as hanging."""

    name: str
    function: Check
    seconds: float


CHECKS: list[RegisteredCheck] = []


def check(name: str, *, seconds: float = 30.0) -> Callable[[Check], Check]:
    """Register a check: a decorator. Checks run in the order in which they are registered.

    Args:
        name: of the check, a few words.
        seconds: after which it counts as hanging.

    Example:
        >>> @check("clock")
        ... def clock(request):
        ...     return [ok("it is set")]
    """

    def register(function: Check) -> Check:
        CHECKS.append(RegisteredCheck(name, function, seconds))
        return function

    return register

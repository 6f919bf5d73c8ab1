"""Tells `plsc launch`, where it started this rank, from which step a restart would go on and how training ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plsc.distributed.launching.reports import report_end, report_position
from plsc.engine.observers import Observer, Run, Step


class LaunchReport(Observer):
    """Reports on every rank, since each machine has a `plsc launch` of its own."""

    every_rank = True

    def on_start(self, run: Run) -> None:
        report_position(run.first_step)

    def on_save(self, step: Step, path: Path) -> None:
        report_position(step.number)

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        report_end(error)

"""`plsc report`: an HTML page on one training run, or on several beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plsc.cli.command import tell
from plsc.utils.lazy import require_paddle
from plsc.utils.logging import show_log


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders in which trainings saved (model_save_dir).", metavar="RUN...")
    ],
    output: Annotated[Path, typer.Option("--output", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page on training runs: curves, ROC, thresholds, hardest pairs, worst classes, settings, warnings.

    It holds everything, and makes no request. Needs jinja2 and matplotlib.
    """
    show_log(is_main=True)
    require_paddle()
    from plsc.report.page import write_report

    tell(write_report(runs, output))

"""`plsc serve`: an exported model over HTTP. Every setting of `ServeSettings` is a flag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from plsc.cli.gallery import Model, Report, ReportSet, read_threshold
from plsc.cli.settings import with_settings
from plsc.errors import ServingError
from plsc.serving.settings import ServeSettings
from plsc.utils.logging import show_log


@with_settings(ServeSettings, without=("model", "api_key"))
def serve(
    settings: dict[str, Any],
    model: Model,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the API key. By default the variable PLSC_API_KEY, or no key.")
    ] = None,
    report: Report = None,
    report_set: ReportSet = None,
) -> None:
    """Serve an exported model over HTTP. See docs/serving.md."""
    from plsc.serving.server import serve as run

    show_log(is_main=True)
    settings["model"] = model
    threshold = read_threshold(settings.get("threshold"), report, report_set=report_set)
    if threshold is not None:
        settings["threshold"] = threshold
    key = _read_api_key(api_key_file)
    if key is not None:
        settings["api_key"] = key
    run(ServeSettings(**settings))


def _read_api_key(file: Path | None) -> str | None:
    """The key in a file or the environment. Never an argument, which every user of the machine can read."""
    if file is None:
        return os.environ.get("PLSC_API_KEY") or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServingError(f"{file}: the API key cannot be read: {reason}") from None

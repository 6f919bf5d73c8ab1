"""`plsc doctor`: what this machine has and lacks for training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from plsc.utils.json_text import to_json
from plsc.utils.locations import keep_credentials

# EX_UNAVAILABLE of sysexits.h: what is needed is not there. 1 is an error of the command itself.
FAULT_STATUS = 69


def doctor(
    *,
    save_dir: Annotated[
        Path, typer.Option("--save-dir", help="Folder of checkpoints, whose free space and speed are measured.")
    ] = Path("output"),
    dataset_dir: Annotated[
        str | None,
        typer.Option("--dataset-dir", help="Training data, of which some images are read. Default: none is."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for a bug report. It holds no environment and no home folder.")
    ] = False,
) -> None:
    """Examine Paddle, devices, ranks, memory, decoding, the save folder and the data; say what is wrong and its cure.

    It trains nothing, and takes about 20 seconds. Two ranks are started on this machine and summed over. A file of at
    most 256 MB is written to the save folder, and is gone afterwards. Exit status: 0 no fault, warnings or not; 69 a
    fault; 1 the command itself failed; 2 a flag is wrong. See docs/doctor.md.
    """
    from plsc.doctor.examination import examine, lines_of, report, summary, worst_state
    from plsc.doctor.findings import Request

    data = None if dataset_dir is None else keep_credentials(dataset_dir)
    request = Request(save_dir=Path(keep_credentials(str(save_dir))), dataset_dir=data)
    found, width = [], shutil.get_terminal_size().columns
    for finding in examine(request):
        found.append(finding)
        if not as_json:
            typer.echo(lines_of(finding, width))
    if as_json:
        typer.echo(to_json(report(found), indent=1))
    else:
        typer.echo(summary(found))
    if worst_state(found) == "fault":
        raise typer.Exit(FAULT_STATUS)

"""`plsc lr-find`: which learning rate to train with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plsc.cli.command import tell
from plsc.cli.settings import make_entry, with_settings
from plsc.config import Config
from plsc.distributed.topology import place_from_environment
from plsc.errors import ConfigError
from plsc.utils.files import check_has_folder

if TYPE_CHECKING:
    from plsc.engine.rate_search import RateSearch

_ROWS = 12  # of the table
# What the search sets by itself.
_WITHOUT = ("lr", "lr_schedule", "lr_steps", "lr_epochs", "lr_decay_factor", "lr_power", "auto_resume", "counters")


@with_settings(Config, without=_WITHOUT)
def lr_find(
    settings: dict[str, Any],
    steps: Annotated[int, typer.Option(help="Steps of the search, 20 to 10,000.")] = 100,
    least: Annotated[float, typer.Option("--from", help="Learning rate of its first step.")] = 1e-5,
    most: Annotated[float, typer.Option("--to", help="Learning rate of its last step.")] = 10.0,
    output: Annotated[
        Path | None, typer.Option(help="CSV file to write: rate, loss, smoothed loss. It must not exist yet.")
    ] = None,
) -> None:
    """Find a learning rate: train some steps while it grows, and suggest one by the course of the loss.

    It takes the flags of plsc train, and writes nothing but --output. The suggestion is the smaller of the rate at
    which the smoothed loss falls most steeply and a tenth of that at which it diverges (Smith, arXiv 1506.01186). See
    docs/doctor.md.
    """
    if output is not None:
        _check_output(output)
    found = make_entry(settings).find_lr(steps, least=least, most=most)
    if place_from_environment()[0] != 0:  # every rank has found the same
        return
    typer.echo(describe(found))
    if output is not None:
        try:
            with open(output, "x", encoding="utf-8") as file:
                file.write(found.to_csv())
        except OSError as error:
            raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from None
        tell(f"wrote {output}")


def describe(found: RateSearch) -> str:
    """A table of the search, and its suggestion."""
    step = max(1, -(-len(found.points) // _ROWS))
    lines = [f"{'rate':>10} {'as --lr':>10} {'loss':>10}"]
    lines += [
        f"{point.rate:>10.3g} {found.as_setting(point.rate):>10g} {point.smoothed:>10.4g}"
        for point in found.points[::step]
    ]
    if found.steepest is None:
        lines.append(
            "no suggestion: the loss does not fall; give more --steps, a greater --to, or look at the data with plsc "
            "data inspect"
        )
        return "\n".join(lines)
    lines.append(f"steepest fall of the loss at {found.steepest:.3g}")
    lines.append(
        "the loss does not diverge; a greater --to finds where"
        if found.diverged is None
        else f"the loss diverges at {found.diverged:.3g}; a tenth of it is {found.diverged / 10:.3g}"
    )
    lines.append(
        f"suggestion: --lr {found.setting:g}, which is {found.suggestion:.3g} at the global batch of "
        f"{found.global_batch:,} (lr is given at 1024)"
    )
    return "\n".join(lines)


def _check_output(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output} exists and is not overwritten; choose another --output")
    check_has_folder(output, ConfigError)

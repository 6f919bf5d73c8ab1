"""`plsc models`: the backbones, and what each costs."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from plsc.config import Config
from plsc.errors import ConfigError
from plsc.models.registry import list_backbones
from plsc.utils.json_text import to_json
from plsc.utils.lazy import require_paddle

_HEADINGS = ("backbone", "parameters", "multiply-adds", "memory per image")


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names, as of --model-name of plsc train. Default: all that are built in."),
    ] = None,
    *,
    emb_dim: Annotated[int, typer.Option(min=1, help="Embedding size D.")] = 512,
    image_shape: Annotated[str, typer.Option(help="3 channels, height, width.")] = "3,112,112",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List backbones with parameters, multiply-adds and memory per image.

    Multiply-adds are those of convolutions and matrix products, for one image in evaluation. The memory is what
    training in float32 keeps of one image for the backward pass. Nothing is run: the numbers come from shapes.
    """
    require_paddle()
    shape = _parse_shape(image_shape)
    rows = []
    if not as_json:
        typer.echo(_line(*_HEADINGS))
    for name in names or list_backbones():
        rows.append(_measure(name, emb_dim, shape))
        if not as_json:
            typer.echo(_describe(rows[-1]))
    if as_json:
        typer.echo(to_json(rows, indent=1))
    if names and all("error" in row for row in rows):
        raise typer.Exit(1)


def _parse_shape(text: str) -> tuple[int, ...]:
    config = Config()
    config.assign(image_shape=text)
    return config.image_shape


def _measure(name: str, emb_dim: int, image_shape: tuple[int, ...]) -> dict[str, Any]:
    from plsc.models.complexity import measure_backbone

    try:
        return {"name": name, **dataclasses.asdict(measure_backbone(name, emb_dim=emb_dim, image_shape=image_shape))}
    except ConfigError as error:
        return {"name": name, "error": str(error)}


def _describe(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']}: {row['error']}"
    return _line(
        row["name"],
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['multiply_adds'] / 1e9:.3f} G",
        f"{row['image_bytes'] / 1e6:.1f} MB",
    )


def _line(name: str, *numbers: str) -> str:
    return f"{name:<16}" + "".join(f"{number:>18}" for number in numbers)

"""The manifest of a checkpoint: which tensors it has, and which rows of them lie in which file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from plsc.errors import CheckpointError

FORMAT, VERSION = "plsc-checkpoint", 1
# What NumPy and safetensors both know.
_DTYPES = frozenset(np.dtype(code).name for code in "?bBhHiIqQefdF")

_Model = TypeVar("_Model", bound=BaseModel)

_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)


class PartEntry(_Entry):
    file: str
    offset: _Count
    rows: _Count


class TensorEntry(_Entry):
    shape: list[_Count]
    dtype: str
    parts: list[PartEntry]

    @field_validator("dtype")
    @classmethod
    def _is_known(cls, dtype: str) -> str:
        if dtype not in _DTYPES:
            raise ValueError(f"found {dtype!r}, expected one of {', '.join(sorted(_DTYPES))}")
        return dtype

    @model_validator(mode="after")
    def _rows_follow_each_other(self) -> TensorEntry:
        reached, end = 0, self.shape[0] if self.shape else 1
        for part in self.parts:
            stop = part.offset + part.rows
            if part.offset < reached or stop > end:
                raise ValueError(
                    f"found rows {part.offset} to {stop} in {part.file!r}, expected rows from {reached} on, up to {end}"
                )
            reached = stop
        return self


class Manifest(_Entry):
    format: str
    version: int
    about: dict[str, Any]
    files: dict[str, _Count]  # bytes by name
    tensors: dict[str, TensorEntry]

    @model_validator(mode="after")
    def _files_lie_in_the_folder(self) -> Manifest:
        for name in self.files:
            if name != os.path.basename(name) or name in ("", ".", ".."):
                raise ValueError(f"found file {name!r}, expected the name of a file in the checkpoint's folder")
        for name, entry in self.tensors.items():
            for part in entry.parts:
                if part.file not in self.files:
                    raise ValueError(f"tensor '{name}' lies in {part.file!r}, which is not among the listed files")
        return self


def read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest: {error}; use another epoch's") from None
    if found != (FORMAT, VERSION):
        raise CheckpointError(
            f"{path}: found format {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version {VERSION}"
        )
    return check_content(Manifest, content, path)


def check_content(kind: type[_Model], content: Any, path: Path, *, inside: str = "") -> _Model:
    """What a manifest holds as an object of a pydantic model.

    Args:
        kind: the model.
        content: what was read.
        path: the manifest.
        inside: the key of the manifest that `content` is the value of.

    Raises:
        CheckpointError: a value is missing or of another kind; names the first.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(filter(None, [inside, *map(str, first["loc"])]))
        message = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path}: the manifest is damaged: {f'{where}: ' if where else ''}{message}; use another epoch's"
        ) from None

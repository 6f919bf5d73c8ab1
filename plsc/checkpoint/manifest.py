"""The manifest of a checkpoint: which tensors it has, which rows of them lie in which file, and the digests of all.

The manifest is JSON whose second line holds the digest of all lines after it:

    {
     "digest": "0123456789abcdef",
     "format": "plsc-checkpoint",
     ...

Version 1 has no digests. It is read as a version 2 whose digests are None.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from plsc.checkpoint.digests import ALGORITHM, DIGEST_PATTERN, digest_of
from plsc.errors import CheckpointError
from plsc.utils.plural import counted
from plsc.utils.safetensors_file import DTYPES

FORMAT, VERSION = "plsc-checkpoint", 2
_SEAL = re.compile(rb'\{\n "digest": "(' + DIGEST_PATTERN.encode() + rb')",\n')

_Model = TypeVar("_Model", bound=BaseModel)
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Digest = Annotated[str, Field(pattern=f"^{DIGEST_PATTERN}$")]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)


class FileEntry(_Entry):
    """A file of the checkpoint's folder.

    Attributes:
        bytes: its size.
        digest: of the whole file; None in version 1.
        header: digest of the length and the header of a safetensors file; None in version 1 and for other files.
    """

    bytes: _Count
    digest: _Digest | None
    header: _Digest | None = None


class PartEntry(_Entry):
    """Rows of a tensor in one file.

    Attributes:
        file: the name of the file.
        key: the name of these rows in it.
        offset: the first row, counted in the whole tensor.
        rows: how many.
        block_rows: rows per digest, except for the last one; 1 or more, without a meaning in version 1.
        digests: of each block of rows; None in version 1.
    """

    file: str
    key: str
    offset: _Count
    rows: _Count
    block_rows: Annotated[int, Field(ge=1, lt=2**63)]
    digests: list[_Digest] | None

    @model_validator(mode="after")
    def _has_a_digest_per_block(self) -> PartEntry:
        blocks = -(-self.rows // self.block_rows)
        if self.digests is not None and len(self.digests) != blocks:
            raise ValueError(
                f"found {counted(len(self.digests), 'digest')}, expected {blocks}, one per {self.block_rows} rows"
            )
        return self


class TensorEntry(_Entry):
    """A tensor and where its rows are: each row in exactly one part. A scalar has one row."""

    shape: list[_Count]
    dtype: str
    parts: list[PartEntry]

    @property
    def rows(self) -> int:
        """Rows of the whole tensor."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @field_validator("dtype")
    @classmethod
    def _is_known(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"found {dtype!r}, expected one of {', '.join(sorted(DTYPES))}")
        return dtype

    @model_validator(mode="after")
    def _every_row_is_in_one_part(self) -> TensorEntry:
        reached = 0
        for part in self.parts:
            stop = part.offset + part.rows
            if part.offset != reached or stop > self.rows:
                raise ValueError(
                    f"found rows {part.offset} to {stop} in {part.file!r}, expected rows from {reached} on, up to "
                    f"{self.rows}"
                )
            reached = stop
        if reached != self.rows:
            raise ValueError(f"row {reached} is in no file, expected rows up to {self.rows}")
        return self


class Manifest(_Entry):
    """What `manifest.json` holds.

    Attributes:
        digests: how digests are made.
        about: what the writer says of the run.
        files: by name.
        tensors: by name.
    """

    format: str
    version: int
    digests: str | None
    about: dict[str, Any]
    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]

    @field_validator("digests")
    @classmethod
    def _are_known(cls, digests: str | None) -> str | None:
        if digests not in (ALGORITHM, None):
            raise ValueError(f"found {digests!r}, expected {ALGORITHM!r}")
        return digests

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


def seal(content: dict[str, Any]) -> bytes:
    """A manifest as the bytes of its file: JSON, and the digest of it."""
    rest = json.dumps(content, indent=1).encode()[2:]  # all but the first line, which is {
    return b'{\n "digest": "%s",\n' % digest_of(rest).encode() + rest


def read_manifest(path: Path) -> tuple[Manifest, str | None]:
    """The manifest in a file, and its digest; None in version 1.

    Raises:
        CheckpointError: it is no manifest, is of an unknown version, has changed since it was written, or a value is
            missing or of another kind.
    """
    try:
        data = path.read_bytes()
        digest = _check_seal(data, path)
        content = json.loads(data.decode())
        found = content["format"], content["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's manifest: {error}; use another checkpoint") from None
    if found[0] != FORMAT or type(found[1]) is not int or found[1] not in (1, VERSION):
        raise CheckpointError(
            f"{path}: found format {found[0]!r} version {found[1]!r}, expected {FORMAT!r} version 1 or {VERSION}; it "
            f"is damaged, or a newer version of this library wrote it"
        )
    if found[1] == 1:
        content = _upgrade(content)
    elif digest is None:
        raise CheckpointError(
            f"{path}: the manifest is damaged: its second line holds no digest, expected that of the lines after it; "
            f"use another checkpoint"
        )
    return check_content(Manifest, content, path), digest


def _check_seal(data: bytes, path: Path) -> str | None:
    """The digest that a manifest begins with, compared with that of its content; None where it has none."""
    found = _SEAL.match(data)
    if found is None:
        return None
    stated, actual = found[1].decode(), digest_of(data[found.end() :])
    if stated != actual:
        raise CheckpointError(
            f"{path}: the manifest is damaged: the digest of its content is {actual}, expected {stated}; use another "
            f"epoch's"
        )
    return stated


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    """A manifest of version 1 as one of version 2. What is of another kind than expected stays, for the check."""
    files, tensors = content.get("files"), content.get("tensors")
    if isinstance(files, dict):
        content["files"] = {name: {"bytes": size, "digest": None} for name, size in files.items()}
    for name, entry in tensors.items() if isinstance(tensors, dict) else ():
        parts = entry.get("parts") if isinstance(entry, dict) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                part.update(key=name, block_rows=1, digests=None)
    return {**content, "digests": None}


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
            f"{path}: the manifest is damaged: {f'{where}: ' if where else ''}{message}; use another checkpoint"
        ) from None

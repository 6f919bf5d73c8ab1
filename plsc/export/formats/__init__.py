"""The formats in addition to the Paddle inference model: one file per format, and its entry in `FORMATS` here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import paddle

from plsc.errors import ExportError
from plsc.export.checking import Run
from plsc.export.formats.legacy import write_legacy
from plsc.export.formats.onnx import write_onnx
from plsc.export.formats.paddle_serving import SETTINGS, write_paddle_serving


class Writer(Protocol):
    """Writes one format, and returns a function that runs what was written: input [N, ...] to outputs [N, D].

    Args:
        network: in evaluation mode.
        spec: shape and type of its input.
        folder: folder of the export. It holds model.json, model.pdiparams and plsc_model.json. The format goes into
            a new sub-folder.

    Raises:
        ExportError: the network cannot be written in this format.
        MissingDependencyError: packages that the format needs are not installed.
    """

    def __call__(self, network: paddle.nn.Layer, spec: paddle.static.InputSpec, *, folder: Path) -> Run: ...


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        write: its writer.
        keep: files for the user to edit, relative to the export's folder. An edited one is kept after the next
            export.
    """

    write: Writer
    keep: tuple[str, ...] = ()


# Formats are written in this order.
FORMATS = {
    "legacy": Format(write_legacy),
    "serving": Format(write_paddle_serving, keep=(SETTINGS,)),
    "onnx": Format(write_onnx),
}


def parse_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """The formats of `FORMATS` to write, in its order. 'paddle' may be named; it is always written.

    Raises:
        ExportError: a format is unknown.
    """
    unknown = [name for name in formats if name != "paddle" and name not in FORMATS]
    if unknown:
        raise ExportError(f"format: got '{unknown[0]}', expected any of {', '.join(['paddle', *FORMATS])}")
    return tuple(name for name in FORMATS if name in formats)

"""A file of weights of any kind, recognized by its content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plsc.checkpoint import MANIFEST, Checkpoint, list_checkpoints
from plsc.errors import CheckpointError, DataError
from plsc.pretrained.inert_pickle import Named
from plsc.pretrained.onnx_file import read_onnx
from plsc.pretrained.paddle_file import read_paddle, with_tensors
from plsc.pretrained.safetensors_file import is_safetensors, read_safetensors
from plsc.pretrained.tensors import StoredTensor, map_file
from plsc.pretrained.torch_file import is_old_torch_file, read_torch

# Where a file keeps the network's tensors among other things, the best first.
_KEYS = ("state_dict_backbone", "state_dict", "model_state_dict", "backbone", "model", "net", "network")
# Parts of names that say in what a network was wrapped.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "network.")
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".pdparams", ".safetensors", ".onnx")
# Names of tensors that Paddle alone has. Safetensors files do not say which library wrote them.
_OF_PADDLE = re.compile(r"\._(mean|variance|weight)$")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a file.

    Attributes:
        path: the file, or the folder of a checkpoint or an export.
        kind: what it is, for messages.
        tensors: by the names in the file.
        is_torch: matrices of fully connected layers are [out, in], as PyTorch has them; in Paddle's files [in, out].
        content: all that the file holds; the same as `tensors` where that is all.
    """

    path: Path
    kind: str
    tensors: Mapping[str, StoredTensor]
    is_torch: bool
    content: Any = None


def open_weights(path: str | Path) -> Weights:
    """Open a file of weights: of PyTorch, Paddle, safetensors or ONNX, or a checkpoint of this library.

    Args:
        path: a file; a checkpoint, or a folder of checkpoints, of which the newest is taken.

    Raises:
        CheckpointError: there is no such file, it is of no known kind, damaged, or holds no tensors; or it asks for
            something that does not belong beside weights, of which nothing was run.
        MissingDependencyError: an ONNX model is given, and the package onnx is not installed.
    """
    path = Path(path)
    if path.is_dir() and ((path / MANIFEST).is_file() or list_checkpoints(path)):
        return _open_checkpoint(path)
    if not path.is_file():
        what = "is a folder without a checkpoint" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"{path}: {what}; expected a checkpoint, or a file of weights: .pdparams, .pt, .pth, .safetensors, .onnx"
        )
    try:
        kind, content = _read(path)
        if isinstance(content, StoredTensor):
            return Weights(path=path, kind=kind, tensors={}, is_torch=True, content=content)
        tensors = _without_prefixes(find_state_dict(content))
    except DataError as error:  # of the stand-ins of arrays
        raise CheckpointError(f"{path}: {error}") from None
    except CheckpointError as error:
        message = str(error)
        raise CheckpointError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    is_paddle = kind == "Paddle's file" or (
        kind == "safetensors file" and any(_OF_PADDLE.search(name) for name in tensors)
    )
    return Weights(path=path, kind=kind, tensors=tensors, is_torch=not is_paddle, content=content)


def _read(path: Path) -> tuple[str, Any]:
    """(kind, content) of a file."""
    data = map_file(path)
    if path.suffix.lower() == ".onnx":
        return "ONNX model", read_onnx(path)
    if bytes(data[:4]) == _ZIP:
        return "PyTorch's file", with_tensors(read_torch(path))
    if is_old_torch_file(data):
        raise CheckpointError(
            "is a file of PyTorch in the format of before 1.6, which is not read; with PyTorch: "
            'torch.save(torch.load(FILE, map_location="cpu"), OTHER)'
        )
    if bytes(data[:1]) == _PICKLE:
        return "Paddle's file", read_paddle(path)
    if is_safetensors(data) or path.suffix.lower() == ".safetensors":  # one that is cut off in its header is none
        return "safetensors file", read_safetensors(path)
    raise CheckpointError(
        f"begins with {bytes(data[:8])!r}, which is none of the files that are read: .pdparams, .pt, .pth, "
        f".safetensors, .onnx"
    )


def _open_checkpoint(path: Path) -> Weights:
    saved, prefix = Checkpoint(path), "backbone."
    tensors = {name[len(prefix) :]: _SavedTensor(saved, name) for name in saved.names(prefix)}
    return Weights(path=saved.path, kind="checkpoint", tensors=tensors, is_torch=False)


class _SavedTensor(StoredTensor):
    """A tensor of a checkpoint."""

    def __init__(self, saved: Checkpoint, name: str) -> None:
        self._saved, self._name = saved, name
        self.shape, self.dtype = saved.shape(name), saved.dtype(name)

    def numpy(self) -> Any:
        """All of it."""
        return self._saved.read(self._name)

    def transposed(self) -> StoredTensor:
        """The same matrix, columns first."""
        return StoredTensor(self.numpy().T)

    def as_bfloat16(self) -> StoredTensor:
        """The same bits, as bfloat16."""
        return StoredTensor(self.numpy(), is_bfloat16=True)


def find_state_dict(content: Any) -> dict[str, StoredTensor]:
    """The tensors by name in what a file holds: itself, or what lies under the first known key.

    Raises:
        CheckpointError: there are none.
    """
    if isinstance(content, dict):
        for inner in (content.get(key) for key in _KEYS):
            if isinstance(inner, dict) and (found := _tensors_in(inner)):
                return found
        if found := _tensors_in(content):
            return found
    if isinstance(content, Named):
        raise CheckpointError(
            f"holds an object of the class {content}, expected its tensors: torch.save(network.state_dict(), FILE)"
        )
    keys = ", ".join(map(repr, list(content)[:10])) if isinstance(content, dict) else f"a {type(content).__name__}"
    raise CheckpointError(f"holds no tensors by name, expected a state_dict; it holds {keys or 'nothing'}")


def _tensors_in(content: dict[Any, Any]) -> dict[str, StoredTensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, StoredTensor)}


def _without_prefixes(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names without `PREFIXES`, where they stay different."""
    short = strip_prefixes(tensors)
    return {short[name]: value for name, value in tensors.items()}


def strip_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Each name without `PREFIXES` at its beginning; all as they are where two would become one."""
    short: dict[str, str] = {}
    for name in names:
        start = 0
        while found := next((prefix for prefix in PREFIXES if name.startswith(prefix, start)), None):
            start += len(found)
        short[name] = name[start:]
    return short if len(set(short.values())) == len(short) else {name: name for name in short}

"""The network of PLSC 0.x: a file per tensor, named by Paddle 1.x, which counts the layers of each kind.

Layers of a kind were made in the order in which this library's ResNet50 has them, so they are given its names. A slope
of PReLU was one number for all channels, and batch normalization added 2e-5 to the variance, where 1e-5 is added here.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from plsc.errors import CheckpointError
from plsc.pretrained.opening import Weights
from plsc.pretrained.paddle_file import read_variable
from plsc.pretrained.tensors import StoredTensor
from plsc.utils.plural import counted

_NAME = re.compile(r"(conv2d|batch_norm|prelu|fc)_(\d+)\.([wb]_\d)")
_UNITS = (3, 4, 14, 3)
_WIDENED = 1e-5  # what the variance lacks here
_WHICH = {
    **{("batch_norm", "w_0"): "weight", ("batch_norm", "b_0"): "bias"},
    **{("batch_norm", "w_1"): "_mean", ("batch_norm", "w_2"): "_variance"},
    **{("conv2d", "w_0"): "weight", ("prelu", "w_0"): "weight", ("fc", "w_0"): "weight", ("fc", "b_0"): "bias"},
}


def open_network(files: list[Path]) -> Weights | None:
    """The network in a folder of PLSC 0.x, under the names of this library's ResNet50; None where there is none.

    Raises:
        CheckpointError: the network is another one than ResNet50.
    """
    found = {(match[1], int(match[2]), match[3]): path for path in files if (match := _NAME.fullmatch(path.name))}
    if not found:
        return None
    layers = _layers()
    for kind, places in layers.items():
        numbers = {number for own, number, _ in found if own == kind}
        if len(numbers) != len(places):
            raise CheckpointError(
                f"the network has {counted(len(numbers), 'layer')} of the kind {kind}, and ResNet50, the network of "
                f"PLSC 0.x that is read, has {len(places)}"
            )
    tensors = {}
    for kind, places in layers.items():
        order = sorted({number for own, number, _ in found if own == kind})
        for place, number in zip(places, order):
            for which in (which for own, which in _WHICH if own == kind):
                if (kind, number, which) in found:
                    tensor = _as_here(read_variable(found[kind, number, which]), kind, which)
                    tensors[f"{place}.{_WHICH[kind, which]}"] = tensor
    return Weights(path=files[0].parent, kind="PLSC 0.x", tensors=tensors, is_torch=False)


def _as_here(tensor: StoredTensor, kind: str, which: str) -> StoredTensor:
    if (kind, which) == ("batch_norm", "w_2"):
        return StoredTensor(tensor.numpy() + np.float32(_WIDENED))
    return StoredTensor(tensor.numpy().reshape(-1)) if kind == "prelu" else tensor


def _layers() -> dict[str, list[str]]:
    """Kind of layer -> the names of such layers in ResNet50, in the order in which they were made."""
    layers = {"conv2d": ["stem.0"], "batch_norm": ["stem.1"], "prelu": ["stem.2"], "fc": ["head.3"]}
    unit = 0
    for count in _UNITS:
        for index in range(count):
            body = f"stages.{unit}.body"
            layers["batch_norm"] += [f"{body}.0", f"{body}.2", f"{body}.5"]
            layers["conv2d"] += [f"{body}.1", f"{body}.4"]
            layers["prelu"].append(f"{body}.3")
            if index == 0:
                layers["conv2d"].append(f"stages.{unit}.shortcut.0")
                layers["batch_norm"].append(f"stages.{unit}.shortcut.1")
            unit += 1
    layers["batch_norm"] += ["head.0", "head.4"]
    return layers

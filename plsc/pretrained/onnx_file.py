"""The weights of ONNX models, whose initializers have the names of the network that was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plsc.errors import CheckpointError
from plsc.pretrained.tensors import StoredTensor
from plsc.utils.lazy import require

_BFLOAT16 = 16


def read_onnx(path: Path) -> dict[str, StoredTensor]:
    """The initializers of an ONNX model, by name. Those in files beside it are read from its folder, and no other.

    Raises:
        MissingDependencyError: the package onnx is not installed.
        CheckpointError: the file is damaged.
    """
    onnx: Any = require("onnx", "onnx", purpose="reading ONNX models")
    try:
        model = onnx.load(str(path))  # the package refuses files outside of the folder
        tensors = {}
        for value in model.graph.initializer:
            array = onnx.numpy_helper.to_array(value)
            if value.data_type == _BFLOAT16:  # older versions return the bits, newer ones a type of ml_dtypes
                array = array.astype(np.float32) if array.dtype.kind != "u" else array
            is_bits = value.data_type == _BFLOAT16 and array.dtype == np.uint16
            if array.dtype.kind in "fiub":
                tensors[value.name] = StoredTensor(array, is_bfloat16=is_bits)
    except Exception as error:  # the package raises what protobuf raises
        raise CheckpointError(f"is no ONNX model, or damaged: {str(error)[:200]}") from None
    return tensors

"""The format 'onnx': model.onnx of opset 14, by paddle2onnx."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import paddle

from plsc.errors import ExportError
from plsc.export.checking import Run
from plsc.inference.model_card import MODEL_PREFIX
from plsc.utils.files import utf8_folder
from plsc.utils.lazy import require

OPSET = 14
# The path of this process is not the converter's: nothing is imported from the current folder.
_CONVERT = f"""import sys
sys.path[0:1] = []
import paddle2onnx
paddle2onnx.export(*sys.argv[1:], opset_version={OPSET}, verbose=False)
"""
_NO_OPERATORS = {"data", "fetch", "full", "full_int_array", "combine"}


def write_onnx(network: paddle.nn.Layer, spec: paddle.static.InputSpec, *, folder: Path) -> Run:
    """Write FOLDER/onnx/model.onnx. Free axes have names: batch, and with baked pre-processing height and width.

    Raises:
        MissingDependencyError: paddle2onnx, onnx or onnxruntime is not installed.
        ExportError: the converter does not support an operator of the network.
    """
    _, onnx, onnxruntime = (
        require(name, "paddle2onnx onnx onnxruntime", purpose="the format 'onnx' (Python 3.12 at most)")
        for name in ("paddle2onnx", "onnx", "onnxruntime")
    )
    with utf8_folder(folder) as folder:
        path = _convert(folder, type(network).__name__)
        model = onnx.load(str(path))
        names = ["batch"] + [
            ("height", "width")[index] for index, size in enumerate(spec.shape[1:3]) if size in (None, -1)
        ]
        for value in (model.graph.input[0], model.graph.output[0]):
            free = [axis for axis in value.type.tensor_type.shape.dim if axis.dim_value <= 0]
            for axis, name in zip(free, names):
                axis.dim_param = name
        onnx.checker.check_model(model)
        onnx.save(model, str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda batch: session.run(None, {name: batch})[0]


def _convert(folder: Path, network: str) -> Path:
    (folder / "onnx").mkdir()
    path, source = folder / "onnx" / "model.onnx", folder / "onnx" / "source.json"
    text = (folder / f"{MODEL_PREFIX}.json").read_text(encoding="utf-8")
    # paddle2onnx 2.1 reads 64-bit attributes, such as the slope of a LeakyReLU, from the wrong memory.
    source.write_text(text.replace('"0.a_f64"', '"0.a_f32"'), encoding="utf-8")
    # In a process of its own, because paddle2onnx ends the process when it does not support an operator.
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, source, folder / f"{MODEL_PREFIX}.pdiparams", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    source.unlink()
    if done.returncode or not path.is_file():
        said = re.findall(r".*(?:ERROR|Error:).*", done.stdout.decode(errors="replace"))
        operators = ", ".join(sorted(set(re.findall(r'"#":"1\.(?!a_)(\w+)"', text)) - _NO_OPERATORS))
        raise ExportError(
            f"{network}: paddle2onnx cannot convert it: {' '.join(said)[:300]}; export without 'onnx', "
            f"or replace the operator that it does not know. The network has {operators}"
        )
    return path

"""The formats that stand beside the Paddle inference model. Each writer returns a function that runs what it wrote."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

from plsc.errors import ExportError
from plsc.export.formats.paddle_serving import SERVER_FOLDER, Variable, write_model_folders, write_pipeline_service
from plsc.export.tracing import save_traced
from plsc.inference.model_card import ABOUT_FILE, MODEL_PREFIX
from plsc.inference.predictor import Predictor
from plsc.utils.lazy import require

Run = Callable[[np.ndarray], np.ndarray]

OPSET = 14
# Nothing is imported from the current folder.
_CONVERT = f"""import sys
sys.path[0:1] = []
import paddle2onnx
paddle2onnx.export(*sys.argv[1:], opset_version={OPSET}, verbose=False)
"""
_NO_OPERATORS = {"data", "fetch", "full", "full_int_array", "combine"}


def write_legacy(network: paddle.nn.Layer, spec: paddle.static.InputSpec, folder: Path) -> Run:
    """FOLDER/legacy: what Paddle 2 reads; weights are in its own .pdiparams, named otherwise than the new one's."""
    (folder / "legacy").mkdir(exist_ok=True)
    save_traced(network, spec, folder / "legacy" / MODEL_PREFIX, legacy=True)
    return Predictor(folder / "legacy" / f"{MODEL_PREFIX}.pdmodel", plain=True).run


def write_serving(network: paddle.nn.Layer, spec: paddle.static.InputSpec, folder: Path) -> Run:
    """FOLDER/serving: `serving_server/`, `serving_client/`, and a pipeline service of Paddle Serving."""
    serving, traced = folder / "serving", folder / ".legacy"
    serving.mkdir()
    traced.mkdir()
    save_traced(network, spec, traced / MODEL_PREFIX, legacy=True)
    model = traced / f"{MODEL_PREFIX}.pdmodel"
    predictor = Predictor(model, plain=True)
    dtype = str(spec.dtype).split(".")[-1].lower()
    feed = Variable(predictor.input_name, predictor.input_name, dtype, tuple(spec.shape[1:]))
    about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
    fetch = Variable(predictor.output_name, "embedding", "float32", (about["emb_dim"],))
    write_model_folders(serving, model, model.with_suffix(".pdiparams"), [feed], [fetch])
    write_pipeline_service(serving)
    shutil.copyfile(folder / ABOUT_FILE, serving / ABOUT_FILE)
    shutil.rmtree(traced)
    # Fused and under oneDNN, as Paddle Serving runs it whatever its settings say.
    return Predictor(serving / SERVER_FOLDER / "model.pdmodel").run


def write_onnx(network: paddle.nn.Layer, spec: paddle.static.InputSpec, folder: Path) -> Run:
    """FOLDER/onnx/model.onnx, its free axes named: batch, and with baked pre-processing height and width.

    Raises:
        MissingDependencyError: paddle2onnx, onnx or onnxruntime is not installed.
        ExportError: the converter knows an operator not.
    """
    _, onnx, onnxruntime = (
        require(name, "'paddle2onnx>=2.1' onnx onnxruntime", "the format 'onnx' (Python 3.12 at most)")
        for name in ("paddle2onnx", "onnx", "onnxruntime")
    )
    path = _convert_to_onnx(folder, type(network).__name__)
    model = onnx.load(str(path))
    names = ["batch"] + [("height", "width")[index] for index, size in enumerate(spec.shape[1:3]) if size in (None, -1)]
    for value in (model.graph.input[0], model.graph.output[0]):
        free = [dim for dim in value.type.tensor_type.shape.dim if dim.dim_value <= 0]
        for dim, name in zip(free, names):
            dim.dim_param = name
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def _convert_to_onnx(folder: Path, network: str) -> Path:
    (folder / "onnx").mkdir()
    path, source = folder / "onnx" / "model.onnx", folder / "onnx" / "source.json"
    text = (folder / f"{MODEL_PREFIX}.json").read_text(encoding="utf-8")
    # paddle2onnx 2.1 reads 64-bit attributes, as the slope of a LeakyReLU, from the wrong memory.
    source.write_text(text.replace('"0.a_f64"', '"0.a_f32"'), encoding="utf-8")
    # In a process of its own, which it ends where it knows an operator not.
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

"""The formats that stand beside the Paddle inference model. Each writer returns a function that runs what it wrote."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Callable

import numpy as np
import paddle

from plsc.engine.tracing import save_traced
from plsc.errors import ExportError
from plsc.serving.description import ABOUT_FILE, MODEL_PREFIX
from plsc.serving.paddle_serving import SERVER_FOLDER, Variable, write_model_folders, write_pipeline_service
from plsc.serving.predictor import Predictor
from plsc.utils.lazy import require

Run = Callable[[np.ndarray], np.ndarray]

OPSET = 14


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
    with paddle.no_grad():
        width = network(paddle.zeros(_any_shape(spec), dtype)).shape[1]
    fetch = Variable(predictor.output_name, "embedding", "float32", (width,))
    write_model_folders(serving, model, model.with_suffix(".pdiparams"), [feed], [fetch])
    write_pipeline_service(serving)
    shutil.copyfile(folder / ABOUT_FILE, serving / ABOUT_FILE)
    shutil.rmtree(traced)
    return Predictor(serving / SERVER_FOLDER / "model.pdmodel", plain=True).run


def write_onnx(network: paddle.nn.Layer, spec: paddle.static.InputSpec, folder: Path) -> Run:
    """FOLDER/onnx/model.onnx, its free axes named: batch, and with baked pre-processing height and width.

    Raises:
        MissingDependencyError: `plsc[onnx]` is not installed.
        ExportError: the converter knows an operator not.
    """
    paddle2onnx, onnx, onnxruntime = (require(name, "'plsc[onnx]'", "the format 'onnx' (Python 3.12 at most)")
                                      for name in ("paddle2onnx", "onnx", "onnxruntime"))
    (folder / "onnx").mkdir()
    path = folder / "onnx" / "model.onnx"
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            paddle2onnx.export(str(folder / f"{MODEL_PREFIX}.json"), str(folder / f"{MODEL_PREFIX}.pdiparams"),
                               str(path), opset_version=OPSET, verbose=False)
    except Exception as error:
        raise ExportError(f"{type(network).__name__}: paddle2onnx cannot convert it: {str(error).strip()[-300:]}; "
                          f"export without 'onnx', or replace the operator it names") from None
    if not path.is_file():
        raise ExportError(f"{type(network).__name__}: paddle2onnx wrote nothing: {said.getvalue().strip()[-300:]}")
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


def _any_shape(spec: paddle.static.InputSpec) -> list:
    return [1] + [16 if size in (None, -1) else size for size in spec.shape[1:]]

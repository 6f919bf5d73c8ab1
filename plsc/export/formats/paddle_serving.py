"""The format 'serving', for Paddle Serving 0.9: `serving_server/`, `serving_client/`, and a pipeline service.

The four configuration files hold one message, `GeneralModelConfig`, as text and as bytes, equal to what the converter
of paddle-serving-client writes. That converter cannot be used: it needs a Paddle that the package index no longer has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle

from plsc.errors import ExportError
from plsc.export.checking import Run
from plsc.export.tracing import save_traced
from plsc.inference.model_card import ABOUT_FILE, MODEL_PREFIX
from plsc.inference.predictor import Predictor
from plsc.utils.lazy import require

# Settings of the pipeline service.
SETTINGS = "serving/config.yml"
SERVER_FOLDER, CLIENT_FOLDER = "serving_server", "serving_client"
TEMPLATES = Path(__file__).with_name("pipeline_service")


@dataclass(frozen=True)
class Variable:
    """An input or output of a model.

    Attributes:
        name: name in the model.
        alias: name for clients. An input's alias must equal its name: Paddle Serving's local predictor feeds by name.
        dtype: a key of `ELEMENT_TYPES` of plsc/inference/paddle_serving_messages.py.
        shape: shape without the batch axis. Free axes are None or negative; the configuration leaves them out.
    """

    name: str
    alias: str
    dtype: str
    shape: tuple[int | None, ...]


def write_paddle_serving(network: paddle.nn.Layer, spec: paddle.static.InputSpec, *, folder: Path) -> Run:
    """Write FOLDER/serving: the two model folders, and a service that runs on the real paddle-serving-server."""
    serving, traced = folder / "serving", folder / ".legacy"
    serving.mkdir()
    traced.mkdir()
    save_traced(network, spec, prefix=traced / MODEL_PREFIX, legacy=True)
    model = traced / f"{MODEL_PREFIX}.pdmodel"
    predictor = Predictor(model, plain=True)
    dtype = str(spec.dtype).split(".")[-1].lower()
    feed = Variable(predictor.input_name, predictor.input_name, dtype=dtype, shape=tuple(spec.shape[1:]))
    emb_dim = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))["emb_dim"]
    fetch = Variable(predictor.output_name, "embedding", dtype="float32", shape=(emb_dim,))
    write_model_folders(serving, model, feeds=[feed], fetches=[fetch])
    write_pipeline_service(serving)
    shutil.copyfile(folder / ABOUT_FILE, serving / ABOUT_FILE)
    shutil.rmtree(traced)
    # Fused and under oneDNN: Paddle Serving runs it so under all its settings.
    return Predictor(serving / SERVER_FOLDER / "model.pdmodel").run


def model_config(feeds: Sequence[Variable], fetches: Sequence[Variable]) -> Any:
    """The protobuf message `GeneralModelConfig` of a model.

    Raises:
        ExportError: Paddle Serving has no number for an element type.
    """
    from plsc.inference.paddle_serving_messages import ELEMENT_TYPES, GeneralModelConfig

    config = GeneralModelConfig()
    for kind, variables in (("feed", feeds), ("fetch", fetches)):
        for variable in variables:
            if variable.dtype not in ELEMENT_TYPES:
                raise ExportError(
                    f"'{variable.name}' is {variable.dtype}, which Paddle Serving has no number for; "
                    f"expected one of {', '.join(ELEMENT_TYPES)}"
                )
            fields = {
                "name": variable.name,
                "alias_name": variable.alias,
                "is_lod_tensor": False,
                f"{kind}_type": ELEMENT_TYPES[variable.dtype],
                "shape": [size for size in variable.shape if size is not None and size >= 0],
            }
            getattr(config, f"{kind}_var").add(**fields)
    return config


def write_model_folders(folder: Path, model: Path, *, feeds: Sequence[Variable], fetches: Sequence[Variable]) -> None:
    """Write FOLDER/serving_server and FOLDER/serving_client.

    Args:
        folder: an existing folder.
        model: the legacy .pdmodel, its .pdiparams beside it; both are copied.
        feeds: inputs, in order.
        fetches: outputs, in order.
    """
    text_format = require("google.protobuf.text_format", "protobuf", purpose="the format 'serving'")
    config = model_config(feeds, fetches)
    for name, stem in ((SERVER_FOLDER, "serving_server_conf"), (CLIENT_FOLDER, "serving_client_conf")):
        (folder / name).mkdir()
        (folder / name / f"{stem}.prototxt").write_text(text_format.MessageToString(config), encoding="utf-8")
        (folder / name / f"{stem}.stream.prototxt").write_bytes(config.SerializeToString())
    shutil.copyfile(model, folder / SERVER_FOLDER / "model.pdmodel")
    shutil.copyfile(model.with_suffix(".pdiparams"), folder / SERVER_FOLDER / "model.pdiparams")


def write_pipeline_service(folder: Path) -> None:
    """Write a service that runs FOLDER/serving_server with the real paddle-serving-server.

    It reads config.yml, for the user to edit, and plsc_model.json, which the caller writes.
    """
    for source in sorted(TEMPLATES.iterdir()):
        if source.is_file():
            shutil.copy(source, folder / source.name)

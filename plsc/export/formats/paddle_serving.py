"""A model folder for Paddle Serving 0.9: `serving_server/`, `serving_client/`, their configurations, and a service.

The four configuration files hold one message, `GeneralModelConfig`, as text and as bytes, equal to what the
converter of paddle-serving-client writes. That converter imports no Paddle still on the package index.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plsc.errors import ExportError

SERVER_FOLDER, CLIENT_FOLDER = "serving_server", "serving_client"
TEMPLATES = Path(__file__).with_name("pipeline_service")


@dataclass(frozen=True)
class Variable:
    """An input or output of a model.

    Attributes:
        name: what the model calls it.
        alias: what clients call it. An input's must equal its name: Paddle Serving's local predictor feeds by name.
        dtype: a key of `ELEMENT_TYPES` of plsc/inference/paddle_serving_messages.py.
        shape: without the batch; free dimensions are None or negative, and are left out of the configuration.
    """

    name: str
    alias: str
    dtype: str
    shape: tuple[int | None, ...]


def model_config(feeds: Sequence[Variable], fetches: Sequence[Variable]):
    """The `GeneralModelConfig` message of a model.

    Raises:
        ExportError: an element type that Paddle Serving has no number for.
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


def write_model_folders(
    folder: Path, model: Path, params: Path, feeds: Sequence[Variable], fetches: Sequence[Variable]
) -> None:
    """Write FOLDER/serving_server and FOLDER/serving_client.

    Args:
        folder: existing.
        model: the legacy .pdmodel, copied.
        params: its .pdiparams, copied.
        feeds: inputs, in order.
        fetches: outputs, in order.
    """
    from google.protobuf import text_format

    config = model_config(feeds, fetches)
    for name, stem in ((SERVER_FOLDER, "serving_server_conf"), (CLIENT_FOLDER, "serving_client_conf")):
        (folder / name).mkdir()
        (folder / name / f"{stem}.prototxt").write_text(text_format.MessageToString(config), encoding="utf-8")
        (folder / name / f"{stem}.stream.prototxt").write_bytes(config.SerializeToString())
    shutil.copyfile(model, folder / SERVER_FOLDER / "model.pdmodel")
    shutil.copyfile(params, folder / SERVER_FOLDER / "model.pdiparams")


def write_pipeline_service(folder: Path) -> None:
    """Put a service that runs `FOLDER/serving_server` with the real paddle-serving-server beside it.

    Its settings are in config.yml and, of the images, in plsc_model.json, which the caller writes.
    """
    for source in sorted(TEMPLATES.iterdir()):
        if source.is_file():
            shutil.copy(source, folder / source.name)

"""web_service.py of the Paddle Serving pipeline, loaded without the packages of its own environment."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from unittest import mock

from plsc.export.formats.paddle_serving import write_pipeline_service
from plsc.inference.model_card import ABOUT_FILE

_STUBS = (
    "grpc",
    "waitress",
    "waitress.channel",
    "waitress.task",
    "waitress.wasyncore",
    "paddle_serving_client",
    "paddle_serving_server",
    "paddle_serving_server.pipeline",
    "paddle_serving_server.pipeline.pipeline_server",
    "paddle_serving_server.pipeline.proto",
    "paddle_serving_server.pipeline.proto.pipeline_service_pb2",
    "paddle_serving_server.pipeline.proto.pipeline_service_pb2_grpc",
    "paddle_serving_server.web_service",
)


class _Stub(types.ModuleType):
    """A module that has a new empty class under every name asked for."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def write_service(folder, about):
    """The files of a service but its network, which takes the input 'x'."""
    folder.mkdir()
    write_pipeline_service(folder)
    (folder / ABOUT_FILE).write_text(json.dumps(about))
    (folder / "serving_server").mkdir()
    (folder / "serving_server" / "serving_server_conf.prototxt").write_text('feed_var {\n  name: "x"\n}\n')


def load_operator(folder):
    """The operator of the service in a folder: `batch(inputs)` and `postprocess(...)`."""
    modules = {name: _Stub(name) for name in _STUBS}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    spec = importlib.util.spec_from_file_location("web_service", folder / "web_service.py")
    service = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, modules):
        spec.loader.exec_module(service)
    operator = service.EmbedOp()
    operator.configure(json.loads((folder / ABOUT_FILE).read_text()))
    return operator

"""The protobuf messages of Paddle Serving 0.9: the model configuration and the general model service.

The export writes the model configuration; the HTTP server speaks the general model service.
The messages are built at import from the tables below: generated code would bind the library to one protobuf version.
Lists of numbers in `Tensor` are declared as raw bytes, which is how protobuf packs numbers. A batch of images is then
read into an array without one Python object per value.
"""

from __future__ import annotations

from typing import Any

from plsc.utils.lazy import require

_PURPOSE = "Paddle Serving's messages"
_descriptor_pb2 = require("google.protobuf.descriptor_pb2", "protobuf", purpose=_PURPOSE)
_descriptor_pool = require("google.protobuf.descriptor_pool", "protobuf", purpose=_PURPOSE)
_message_factory = require("google.protobuf.message_factory", "protobuf", purpose=_PURPOSE)

DecodeError = require("google.protobuf.message", "protobuf", purpose=_PURPOSE).DecodeError

# Paddle Serving's number of each element type.
ELEMENT_TYPES = {"int64": 0, "float32": 1, "int32": 2, "float64": 3, "float16": 5, "uint8": 7}

# name: (number, type, label). A type that is no scalar is a message of the same table.
_Fields = dict[str, tuple[int, str, str]]

_CONFIG: dict[str, _Fields] = {
    "FeedVar": {
        "name": (1, "string", "optional"),
        "alias_name": (2, "string", "optional"),
        "is_lod_tensor": (3, "bool", "optional"),
        "feed_type": (4, "int32", "optional"),
        "shape": (5, "int32", "repeated"),
    },
    "FetchVar": {
        "name": (1, "string", "optional"),
        "alias_name": (2, "string", "optional"),
        "is_lod_tensor": (3, "bool", "optional"),
        "fetch_type": (4, "int32", "optional"),
        "shape": (5, "int32", "repeated"),
    },
    "GeneralModelConfig": {"feed_var": (1, "FeedVar", "repeated"), "fetch_var": (2, "FetchVar", "repeated")},
}
_SERVICE: dict[str, _Fields] = {
    # Repeated, because a sender may split a packed list into several parts.
    "Tensor": {
        "float_data": (2, "bytes", "repeated"),
        "elem_type": (10, "int32", "optional"),
        "shape": (11, "int32", "repeated"),
        "name": (13, "string", "optional"),
        "alias_name": (14, "string", "optional"),
        "tensor_content": (15, "bytes", "optional"),
    },
    "Request": {
        "tensor": (1, "Tensor", "repeated"),
        "fetch_var_names": (2, "string", "repeated"),
        "log_id": (4, "uint64", "optional"),
    },
    "ModelOutput": {"tensor": (1, "Tensor", "repeated"), "engine_name": (2, "string", "optional")},
    "Response": {
        "outputs": (1, "ModelOutput", "repeated"),
        "log_id": (4, "uint64", "optional"),
        "err_no": (5, "int32", "optional"),
        "err_msg": (6, "string", "optional"),
    },
}


def _build(package: str, messages: dict[str, _Fields], syntax: str) -> dict[str, Any]:
    field_proto = _descriptor_pb2.FieldDescriptorProto
    file = _descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax=syntax)
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind, label) in fields.items():
            field = message.field.add(name=name, number=number, label=getattr(field_proto, f"LABEL_{label.upper()}"))
            if kind in messages:
                field.type, field.type_name = field_proto.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = getattr(field_proto, f"TYPE_{kind.upper()}")
    pool = _descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found = {name: pool.FindMessageTypeByName(f"{package}.{name}") for name in messages}
    if hasattr(_message_factory, "GetMessageClass"):
        return {name: _message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}
    factory = _message_factory.MessageFactory(pool)  # protobuf before 4.22
    return {name: factory.GetPrototype(descriptor) for name, descriptor in found.items()}


# Explicit presence (proto2) is what writes `is_lod_tensor: false` out, as Paddle Serving's own converter does.
GeneralModelConfig = _build("plsc.paddle_serving.config", _CONFIG, "proto2")["GeneralModelConfig"]
_service = _build("plsc.paddle_serving.service", _SERVICE, "proto3")
Request, Response = _service["Request"], _service["Response"]

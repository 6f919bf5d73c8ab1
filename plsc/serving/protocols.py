"""Parse bodies of requests to images and tensors, and write embeddings as bodies of replies. Functions of bytes only.

Three protocols: Paddle Serving's general model service, in protobuf and JSON; the face service of PLSC 0.1; and plain
JSON. A wrong body raises `HTTPError` of status 4xx.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.inference.model_card import ModelCard
from plsc.inference.paddle_serving_messages import ELEMENT_TYPES, DecodeError, Request, Response
from plsc.serving.http_error import HTTPError
from plsc.utils.lazy import SERVER_PACKAGES, require
from plsc.utils.plural import counted

require("orjson", SERVER_PACKAGES, purpose="the server")

import orjson  # noqa: E402

INPUT, OUTPUT = "image", "embedding"
_PIECE = 1 << 20  # bytes decompressed at a time
_MAX_MEMBERS = 16  # each copies the rest of the body


def gunzip(body: bytes, limit: int) -> bytes:
    """Decompress a gzip body, with no more than `limit` bytes in memory.

    Raises:
        HTTPError: 400 the body is truncated, not gzip, or of more than 16 members; 413 it is larger than `limit`.
    """
    pieces, size, rest, members = [], 0, body, 0
    while rest:
        members += 1
        if members > _MAX_MEMBERS:
            raise HTTPError(400, f"the gzip body has more than {_MAX_MEMBERS} members, expected one")
        stream = zlib.decompressobj(wbits=31)
        while not stream.eof:
            try:
                piece = stream.decompress(rest, min(_PIECE, limit + 1 - size))
            except zlib.error as error:
                raise HTTPError(400, f"Content-Encoding is gzip, but the body is not: {error}") from None
            if not piece and not stream.eof and not stream.unconsumed_tail:
                raise HTTPError(400, f"the gzip body of {counted(len(body), 'byte')} is truncated")
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise HTTPError(413, f"the body unpacks to more than {limit} bytes, the limit")
            rest = stream.unconsumed_tail
        rest = stream.unused_data
    return b"".join(pieces)


def read_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        found = orjson.loads(body)
    except ValueError as error:
        raise HTTPError(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise HTTPError(400, f"the body is a JSON {type(found).__name__}, expected an object")
    return found


def base64_images(body: bytes, key: str, *, limit: int) -> list[bytes]:
    """Parse the encoded images of `{key: ["base64", ...]}`, or of `{key: "base64"}`.

    Raises:
        HTTPError: 400 the body is something else, 413 it has more than `limit` images.
    """
    found = read_json(body)
    if key not in found:
        raise HTTPError(400, f'got the keys {sorted(found)[:5]}, expected "{key}": ["<base64 of an image>", ...]')
    texts = [found[key]] if isinstance(found[key], str) else found[key]
    if not isinstance(texts, list) or not texts:
        raise HTTPError(400, f'"{key}": got {_describe(texts)}, expected a list of one base64 string or more')
    if len(texts) > limit:
        raise HTTPError(413, f'"{key}": got {counted(len(texts), "image")}, expected {limit} at most in one request')
    return [_from_base64(index, text) for index, text in enumerate(texts)]


def _from_base64(index: int, text: Any) -> bytes:
    if not isinstance(text, str):
        raise HTTPError(400, f"image {index}: got {_describe(text)}, expected a base64 string")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        # Old encoders break lines.
        return base64.b64decode("".join(text.split()) if "\n" in text else text, validate=True)
    except ValueError as error:
        raise HTTPError(
            400,
            f"image {index}: no base64 ({error}): got {text[:40]!r} of {counted(len(text), 'character')}, expected "
            f"the bytes of an image file in base64",
        ) from None


@dataclass(frozen=True)
class GeneralRequest:
    """A request of Paddle Serving's general model service.

    Attributes:
        tensor: [N, ...] of the model's input type.
        log_id: number that the reply repeats.
    """

    tensor: NDArray[Any]
    log_id: int


def parse_general_proto(body: bytes, card: ModelCard, *, names: Sequence[str]) -> GeneralRequest:
    """Parse a protobuf `Request`.

    Args:
        body: the serialized message.
        card: the model's.
        names: accepted names of the input and the output, in addition to 'image' and 'embedding'.

    Raises:
        HTTPError: 400 the body is no such message, or its tensor is not what the model takes.
    """
    try:
        request = Request.FromString(body)
    except DecodeError as error:
        raise HTTPError(400, f"the body is no protobuf Request of general_model_service.proto: {error}") from None
    tensor = _one_tensor(list(request.tensor))
    _check_names([tensor.name, tensor.alias_name], list(request.fetch_var_names), names)
    data = bytes(tensor.tensor_content) or b"".join(tensor.float_data)
    dtype = card.input_dtype if tensor.tensor_content else np.dtype(np.float32)
    if len(data) % dtype.itemsize:
        raise HTTPError(
            400, f"tensor '{INPUT}': {counted(len(data), 'byte')} of data, expected a multiple of {dtype.itemsize}"
        )
    return GeneralRequest(
        _tensor(np.frombuffer(data, dtype.newbyteorder("<")), list(tensor.shape), card), request.log_id
    )


def parse_general_json(body: bytes, card: ModelCard, *, names: Sequence[str]) -> GeneralRequest:
    """Parse a `Request` as JSON: `{"tensor": [{"float_data": [...], "shape": [...], "name": ...}], ...}`.

    Arguments and errors as for `parse_general_proto`.
    """
    found = read_json(body)
    tensors, fetches, log_id = found.get("tensor"), found.get("fetch_var_names") or [], found.get("log_id", 0)
    if not isinstance(tensors, list) or not isinstance(fetches, list):
        raise HTTPError(400, f'"tensor": got {_describe(tensors)}, expected a list of one tensor, and a list of names')
    tensor = _one_tensor(tensors)
    if not isinstance(tensor, dict) or not isinstance(log_id, int):
        raise HTTPError(
            400, f"got a tensor {_describe(tensor)} and log_id {log_id!r:.20}, expected an object and a number"
        )
    _check_names([tensor.get("name") or "", tensor.get("alias_name") or ""], fetches, names)
    key = "int_data" if card.takes_pixels else "float_data"
    values, shape = tensor.get(key), tensor.get("shape")
    if not isinstance(values, list) or not isinstance(shape, list):
        raise HTTPError(400, f'tensor \'{INPUT}\': got {sorted(tensor)[:8]}, expected "{key}" and "shape" to be lists')
    if not set(map(type, values)) <= {int, float}:  # NumPy would make every number as wide as the longest text
        raise HTTPError(400, f'"{key}": expected numbers only')
    return GeneralRequest(_tensor(np.asarray(values), shape, card), log_id)


def _one_tensor(tensors: list[Any]) -> Any:
    if len(tensors) != 1:
        raise HTTPError(400, f"got {counted(len(tensors), 'tensor')}, expected one, '{INPUT}'")
    return tensors[0]


def _check_names(given: Sequence[Any], fetches: Sequence[Any], names: Sequence[str]) -> None:
    for name in given:
        if name not in ("", INPUT, *names):
            raise HTTPError(400, f"tensor {name!r:.80}: the model's input is named '{INPUT}'")
    for name in fetches:
        if name not in (OUTPUT, *names):
            raise HTTPError(400, f"fetch_var_names: got {name!r:.80}, the model's output is named '{OUTPUT}'")


def _tensor(values: NDArray[Any], shape: list[Any], card: ModelCard) -> NDArray[Any]:
    """Shape flat numbers to [N, ...] of the model's input type and shape."""
    if len(shape) > 8 or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
        raise HTTPError(400, f"shape: got {shape[:8]!r:.80}, expected up to 8 numbers of 1 or more")
    expected = [-1, *card.input_shape]
    if len(shape) != len(expected) or any(size not in (-1, given) for size, given in zip(expected, shape)):
        raise HTTPError(400, f"shape: got {shape}, expected {['N' if size == -1 else size for size in expected]}")
    if values.ndim != 1 or math.prod(shape) != values.size:
        raise HTTPError(400, f"shape {shape} has {math.prod(shape)} values, but {values.size} were sent")
    if card.takes_pixels and (values.min() < 0 or values.max() > 255 or np.any(values != np.floor(values))):
        raise HTTPError(400, "the model takes pixels, whole numbers from 0 to 255")
    with np.errstate(over="ignore"):
        values = values.astype(card.input_dtype, copy=False)
    if not np.isfinite(values).all():
        raise HTTPError(400, "the tensor holds NaN, infinity or numbers too large for float32, expected finite ones")
    return values.reshape(shape)


def general_reply_proto(embeddings: NDArray[Any], log_id: int) -> bytes:
    """Write outputs [N, D] as a protobuf `Response`."""
    response = Response(log_id=log_id)
    output = response.outputs.add(engine_name="plsc")
    output.tensor.add(
        name=OUTPUT,
        alias_name=OUTPUT,
        elem_type=ELEMENT_TYPES["float32"],
        shape=embeddings.shape,
        float_data=[embeddings.astype("<f4").tobytes()],
    )
    serialized: bytes = response.SerializeToString()
    return serialized


def general_reply_json(embeddings: NDArray[Any], log_id: int) -> bytes:
    """Write outputs [N, D] as a `Response` in JSON."""
    tensor = {
        "float_data": embeddings.reshape(-1),
        "shape": list(embeddings.shape),
        "elem_type": ELEMENT_TYPES["float32"],
        "name": OUTPUT,
        "alias_name": OUTPUT,
    }
    return write_json({"outputs": [{"tensor": [tensor], "engine_name": "plsc"}], "log_id": log_id})


def write_json(value: Any) -> bytes:
    """Write JSON; NumPy arrays become lists."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def parse_count(query: Sequence[tuple[str, str]]) -> int:
    """Parse `k`, the number of results per image of /identify and /classify: 1 to 100, by default 5."""
    text = dict(query).get("k", "5")
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 100):
        raise HTTPError(400, f"k: got {text[:20]!r}, expected a number from 1 to 100")
    return int(text)


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"

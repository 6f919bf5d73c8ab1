"""The OpenAPI document of a server, and a page of it that loads nothing from elsewhere.

The document is written by hand. FastAPI derives one from the signatures of endpoints whose bodies it parses itself;
here one endpoint accepts raw images, forms and JSON, or protobuf and JSON, within limits that the middleware applies
before. Starlette's SchemaGenerator joins YAML in docstrings, which cannot state what this document states: the model's
sizes, the limits, the key and the gallery of this server. tests/serving/test_openapi.py compares the document's paths
and methods with the routes, and replies with their schemas.
"""

from __future__ import annotations

import html
from typing import Any

from plsc.inference.model_card import ModelCard
from plsc.serving.settings import ServeSettings
from plsc.version import __version__

_Schema = dict[str, Any]

_BINARY: _Schema = {"type": "string", "format": "binary"}
_BASE64: _Schema = {"type": "array", "items": {"type": "string", "format": "byte"}}
_OBJECT: _Schema = {"type": "object"}
_COSINE: _Schema = {"type": "number"}
_VERDICT: _Schema = {"type": ["boolean", "null"]}
_THRESHOLD: _Schema = {"type": ["number", "null"]}
_ERRORS = {
    "400": "the body cannot be read as its type; `error` says why",
    "401": "no valid API key",
    "404": "no such path, no gallery, or no classifier",
    "405": "another method is expected",
    "408": "the body arrived too slowly",
    "413": "too large: the body, the images or their number",
    "415": "an unknown type or encoding",
    "503": "overloaded or shutting down; see Retry-After",
    "504": "no answer in time",
}

_COUNT = {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 5}}
_PREDICTION: _Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "number": {"type": "integer"},
        "probability": {"type": "number"},
        "score": {"type": "number"},
    },
}


def openapi(settings: ServeSettings, card: ModelCard) -> dict[str, Any]:
    """The OpenAPI 3.1 document of one server."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "PLSC",
            "version": __version__,
            "description": f"Embeddings of size {card.emb_dim} from images of {card.image_shape[1]} x "
            f"{card.image_shape[2]}. At most {settings.max_images} images and {settings.max_body} bytes a request.",
        },
        "paths": {**_embedding_paths(settings, card), **_state_paths(settings)},
    }
    if settings.api_key is not None:
        document["components"] = {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
        }
        document["security"] = [{"bearer": []}, {"key": []}]
    return document


def _embedding_paths(settings: ServeSettings, card: ModelCard) -> dict[str, Any]:
    vector = {"type": "array", "items": {"type": "number"}, "minItems": card.emb_dim, "maxItems": card.emb_dim}
    form = {"multipart/form-data": _object(image={"type": "array", "items": _BINARY})}
    images = {"image/*": _BINARY, **form, "application/json": _object(("images",), images=_BASE64)}
    two_images = {**form, "application/json": _object(("images",), images=_BASE64)}
    match = _object(name={"type": "string"}, cosine=_COSINE, same=_VERDICT)
    shape = ", ".join("N" if size == -1 else str(size) for size in (-1, *card.input_shape))
    paths = {
        "/embed": _post(
            "Images to embeddings of unit length. With Accept: application/x-npy, a NumPy file [N, D].",
            images,
            _object(embeddings=_array(vector)),
        ),
        "/verify": _post(
            "Two images to the cosine of their embeddings.",
            two_images,
            _object(cosine=_COSINE, same=_VERDICT, threshold=_THRESHOLD),
        ),
        "/FaceClassifyService/inference": _post(
            "The face service of PLSC 0.1: images to embeddings.",
            {"application/json": _object(("base64_string",), base64_string=_BASE64)},
            _object(instance=_array(_object(embedding=vector))),
        ),
        "/GeneralModelService/inference": _post(
            f"Paddle Serving's general model service: a tensor 'image' [{shape}] of {card.input_dtype} to the model's "
            f"outputs. Protobuf (application/proto) or the same message in JSON; request and reply may be gzip.",
            {"application/proto": _BINARY, "application/json": _OBJECT},
            _OBJECT,
        ),
    }
    if settings.gallery is not None:
        identify = _post(
            "Each image to the k most similar entries of the gallery.",
            images,
            _object(results=_array(_array(match)), threshold=_THRESHOLD),
        )
        identify["post"]["parameters"] = [_COUNT]
        paths["/identify"] = identify
    if card.classifier is not None:
        classify = _post(
            f"Each image to the k most probable of {card.classifier.classes} classes. Probabilities are normalized "
            f"over `normalized_over` classes.",
            images,
            _object(results=_array(_array(_PREDICTION)), normalized_over={"type": "integer"}),
        )
        classify["post"]["parameters"] = [_COUNT]
        paths["/classify"] = classify
    return paths


def _state_paths(settings: ServeSettings) -> dict[str, Any]:
    for_browsers = "; browsers get a page to try the model on" if settings.page else ""
    state = _object(ready={"type": "boolean"}, workers={"type": "integer"}, draining={"type": "boolean"})
    return {
        "/healthz": _get("The process is running.", "application/json", _object(status={"type": "string"})),
        "/readyz": _get("The server can answer; 503 if it cannot.", "application/json", state),
        "/metrics": _get("Metrics for Prometheus.", "text/plain"),
        "/openapi.json": _get("This document.", "application/json", _OBJECT),
        "/": _get(f"This document as a page{for_browsers}.", "text/html"),
    }


def page(document: dict[str, Any]) -> str:
    """The document as a page of HTML."""
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            takes = ", ".join(operation.get("requestBody", {}).get("content", {})) or "nothing"
            rows.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(operation['summary'])}</p><p>Takes {html.escape(takes)}.</p>"
            )
    errors = "".join(f"<li><code>{status}</code> {html.escape(text)}</li>" for status, text in _ERRORS.items())
    info = document["info"]
    return (
        f"<!doctype html><meta charset=utf-8><title>{info['title']}</title>"
        f"<style>body{{font:16px/1.5 sans-serif;max-width:46em;margin:2em auto}}h2{{font-size:1.1em}}</style>"
        f"<h1>{info['title']} {info['version']}</h1><p>{html.escape(info['description'])} "
        f"<a href=openapi.json>openapi.json</a></p>{''.join(rows)}<h2>Errors</h2>"
        f'<p>JSON, <code>{{"error": "..."}}</code>:</p><ul>{errors}</ul>'
    )


def _post(summary: str, takes: dict[str, _Schema], gives: _Schema) -> dict[str, Any]:
    operation = _operation(summary, "application/json", gives)
    content = {kind: {"schema": schema} for kind, schema in takes.items()}
    operation["requestBody"] = {"required": True, "content": content}
    operation["responses"].update({status: {"description": text} for status, text in _ERRORS.items()})
    return {"post": operation}


def _get(summary: str, kind: str, gives: _Schema | None = None) -> dict[str, Any]:
    return {"get": _operation(summary, kind, gives or {"type": "string"})}


def _operation(summary: str, kind: str, gives: _Schema) -> dict[str, Any]:
    reply = {"description": "success", "content": {kind: {"schema": gives}}}
    return {"summary": summary, "responses": {"200": reply}}


def _object(required: tuple[str, ...] = (), **properties: _Schema) -> _Schema:
    schema = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def _array(items: _Schema) -> _Schema:
    return {"type": "array", "items": items}

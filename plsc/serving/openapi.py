"""What the server speaks, as an OpenAPI document and as a page that needs nothing from elsewhere."""

from __future__ import annotations

import html
from typing import Any

from plsc.inference.model_card import ModelCard
from plsc.serving.settings import ServeSettings
from plsc.version import __version__

_IMAGES = {
    "type": "object",
    "required": ["images"],
    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
}
_BINARY = {"type": "string", "format": "binary"}
_IMAGE_BODY = {
    "image/*": {"schema": _BINARY},
    "multipart/form-data": {"schema": {"type": "object", "properties": {"image": {"type": "array", "items": _BINARY}}}},
    "application/json": {"schema": _IMAGES},
}
_ERRORS = {
    "400": "the body is not what it claims to be; `error` says why",
    "401": "no valid API key",
    "404": "no such path, or no gallery",
    "405": "another method is expected",
    "408": "the body came too slowly",
    "413": "too large: the body, the images or their number",
    "415": "an unknown type or encoding",
    "503": "overloaded or shutting down; see Retry-After",
    "504": "no answer in time",
}


def openapi(settings: ServeSettings, description: ModelCard) -> dict[str, Any]:
    """The OpenAPI 3.1 document of one server."""
    vector = {
        "type": "array",
        "items": {"type": "number"},
        "minItems": description.emb_dim,
        "maxItems": description.emb_dim,
    }
    embeddings = {"type": "object", "properties": {"embeddings": {"type": "array", "items": vector}}}
    verdict = {
        "type": "object",
        "properties": {
            "cosine": {"type": "number"},
            "same": {"type": ["boolean", "null"]},
            "threshold": {"type": ["number", "null"]},
        },
    }
    match = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "cosine": {"type": "number"}, "same": {"type": ["boolean", "null"]}},
    }
    found = {
        "type": "object",
        "properties": {
            "results": {"type": "array", "items": {"type": "array", "items": match}},
            "threshold": {"type": ["number", "null"]},
        },
    }
    face = {
        "type": "object",
        "properties": {"instance": {"type": "array", "items": {"type": "object", "properties": {"embedding": vector}}}},
    }
    base64 = {
        "type": "object",
        "required": ["base64_string"],
        "properties": {"base64_string": _IMAGES["properties"]["images"]},
    }
    two_images = {kind: content for kind, content in _IMAGE_BODY.items() if kind != "image/*"}
    shape = ", ".join("N" if size == -1 else str(size) for size in (-1, *description.input_shape))
    paths = {
        "/embed": _post(
            "Images to embeddings of unit length. With Accept: application/x-npy, a NumPy file [N, D].",
            _IMAGE_BODY,
            embeddings,
        ),
        "/verify": _post("Two images to their cosine.", two_images, verdict),
        "/FaceClassifyService/inference": _post(
            "PLSC 0.1's face service: images to embeddings.", {"application/json": {"schema": base64}}, face
        ),
        "/GeneralModelService/inference": _post(
            f"Paddle Serving's general model service: a tensor 'image' [{shape}] of {description.input_dtype} to what "
            f"the model gives. Protobuf (application/proto) or the same message in JSON; gzip either way.",
            {"application/proto": {"schema": _BINARY}, "application/json": {"schema": {"type": "object"}}},
            {"type": "object"},
        ),
        "/healthz": _get("The process lives."),
        "/readyz": _get("It can answer; 503 where not."),
        "/metrics": _get("Counters for Prometheus."),
    }
    if settings.gallery is not None:
        paths["/identify"] = _post("Images to the k most similar entries of the gallery.", _IMAGE_BODY, found)
        paths["/identify"]["post"]["parameters"] = [
            {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 5}}
        ]
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "paths": paths,
        "info": {
            "title": "PLSC",
            "version": __version__,
            "description": f"Embeddings of {description.emb_dim} from images of {description.image_shape[1]} x "
            f"{description.image_shape[2]}. At most {settings.max_images} images and "
            f"{settings.max_body} bytes a request.",
        },
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


def page(document: dict[str, Any]) -> str:
    """The document to read in a browser."""
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


def _post(summary: str, content: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    operation = _operation(summary, reply)
    operation["requestBody"] = {"required": True, "content": content}
    operation["responses"].update({status: {"description": text} for status, text in _ERRORS.items()})
    return {"post": operation}


def _get(summary: str) -> dict[str, Any]:
    return {"get": _operation(summary, None)}


def _operation(summary: str, reply: dict[str, Any] | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "done"}
    if reply is not None:
        answer["content"] = {"application/json": {"schema": reply}}
    return {"summary": summary, "responses": {"200": answer}}

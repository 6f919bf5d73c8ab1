"""Serving exported models: the embedded server, its client, galleries, and folders for Paddle Serving."""

from __future__ import annotations

from typing import Any

__all__ = ["Client", "Gallery", "InferenceModel", "ServeSettings", "load_inference_model", "serve"]

_HOMES = {
    "Client": "plsc.serving.client",
    "Gallery": "plsc.inference.gallery",
    "InferenceModel": "plsc.inference.model",
    "load_inference_model": "plsc.inference.model",
    "ServeSettings": "plsc.serving.settings",
    "serve": "plsc.serving.server",
}


def __getattr__(name: str) -> Any:
    # On first use: each needs packages of its own, which not every machine has.
    if name not in _HOMES:
        raise AttributeError(f"module 'plsc.serving' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

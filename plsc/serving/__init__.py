"""The HTTP server of exported models, and its client. Galleries and models are re-exported from plsc.inference."""

from __future__ import annotations

from typing import Any

__all__ = ["Client", "Gallery", "InferenceModel", "ServeSettings", "load_inference_model", "serve"]

_MODULES = {
    "Client": "plsc.serving.client",
    "Gallery": "plsc.inference.gallery",
    "InferenceModel": "plsc.inference.model",
    "load_inference_model": "plsc.inference.model",
    "ServeSettings": "plsc.serving.settings",
    "serve": "plsc.serving.server",
}


def __getattr__(name: str) -> Any:
    # On first use, because each needs packages that not every machine has.
    if name not in _MODULES:
        raise AttributeError(f"module 'plsc.serving' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)

"""PLSC: train classifiers whose last layer has too many classes for one device, and use the result.

Example:
    >>> from plsc import Entry
    >>> entry = Entry()
    >>> entry.set_dataset_dir("./train_data")
    >>> entry.set_class_num(85742)
    >>> entry.train()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plsc.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DistributedError,
    ExportError,
    Interrupted,
    MissingDependencyError,
    NotSavedError,
    PLSCError,
    ServingError,
    StorageError,
    TrainingError,
)
from plsc.version import __version__

if TYPE_CHECKING:
    from plsc.config import Config
    from plsc.data.sources import open_records
    from plsc.data.verification_set import VerificationSet
    from plsc.engine.trainer import Trainer
    from plsc.entry import Entry
    from plsc.inference.model import load_inference_model
    from plsc.models.base_model import BaseModel
    from plsc.models.registry import create_backbone, list_backbones, register_backbone

__all__ = [
    "BaseModel",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "DistributedError",
    "Entry",
    "ExportError",
    "Interrupted",
    "MissingDependencyError",
    "NotSavedError",
    "PLSCError",
    "ServingError",
    "StorageError",
    "Trainer",
    "TrainingError",
    "VerificationSet",
    "__version__",
    "create_backbone",
    "list_backbones",
    "load_inference_model",
    "open_records",
    "register_backbone",
]

# Imported at first use: Paddle takes a second to import, the settings a quarter and OpenCV a tenth.
_AT_FIRST_USE = {
    "BaseModel": "plsc.models.base_model",
    "Config": "plsc.config",
    "Entry": "plsc.entry",
    "Trainer": "plsc.engine.trainer",
    "VerificationSet": "plsc.data.verification_set",
    "create_backbone": "plsc.models.registry",
    "list_backbones": "plsc.models.registry",
    "load_inference_model": "plsc.inference.model",
    "open_records": "plsc.data.sources",
    "register_backbone": "plsc.models.registry",
}
# Subpackages and modules that `import plsc` alone gives.
_MODULES = ("config", "entry", "loss_types", "models", "utils")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"plsc.{name}")
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module 'plsc' has no attribute '{name}'")
    if name in ("BaseModel", "Trainer"):
        from plsc.utils.lazy import require_paddle

        require_paddle()
    value = getattr(importlib.import_module(_AT_FIRST_USE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

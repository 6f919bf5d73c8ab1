"""PLSC: train classifiers whose last layer has too many classes for one device, and serve the result.

from plsc import Entry

entry = Entry()
entry.set_dataset_dir("./train_data")
entry.set_class_num(85742)
entry.train()
"""

from plsc.entry import Entry
from plsc.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DistributedError,
    ExportError,
    MissingDependencyError,
    PLSCError,
    ServingError,
    TrainingError,
)
from plsc.inference.model import load_inference_model
from plsc.version import __version__

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DistributedError",
    "Entry",
    "ExportError",
    "MissingDependencyError",
    "PLSCError",
    "ServingError",
    "TrainingError",
    "__version__",
    "load_inference_model",
]

"""The import path of `evaluate` in PLSC 0.1."""

from plsc.compat.verification import evaluate

__all__ = ["evaluate"]

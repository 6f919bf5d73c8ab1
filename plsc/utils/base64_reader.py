"""The import path of these readers in PLSC 0.2."""

from plsc.compat.base64_reader import test, train

__all__ = ["test", "train"]

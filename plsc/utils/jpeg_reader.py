"""The import path of these readers in PLSC 0.1."""

from plsc.compat.jpeg_reader import arc_train, test

__all__ = ["arc_train", "test"]

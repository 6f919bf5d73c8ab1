"""The base64 readers of PLSC 0.2 under their old path."""

from __future__ import annotations

from typing import Any

from plsc.errors import DataError


def train(*args: Any, **kwargs: Any) -> None:
    """Not there yet: raises `plsc.DataError` that says what to do instead."""
    raise DataError("plsc.utils.base64_reader.train: base64 part files cannot be read yet; unpack them to label.txt "
                    "and images/, or give entry.train_reader a reader of your own")


def test(*args: Any, **kwargs: Any) -> None:
    """Not there yet: raises `plsc.DataError` that says what to do instead."""
    raise DataError("plsc.utils.base64_reader.test: base64 part files cannot be read yet; verification sets are read "
                    "from <name>.bin by plsc.utils.jpeg_reader.test")

"""Small chunks and blocks, so that small problems have several."""

from __future__ import annotations

import pytest

from plsc.losses import shard


@pytest.fixture
def small_chunks(monkeypatch):
    """Several chunks of several blocks, neither dividing the classes."""
    monkeypatch.setitem(shard.CHUNK_ROWS, "cpu", 16)
    monkeypatch.setitem(shard.BLOCK_ROWS, "cpu", 5)

"""Numba where it is installed and works; NumPy elsewhere. What the loops compute: tests/losses/test_storage.py."""

from __future__ import annotations

import sys

import pytest

from plsc.utils.loops import compiled_loops


@pytest.mark.parametrize("error, is_told", [("ImportError", True), ("ModuleNotFoundError", False)])
def test_a_numba_that_cannot_be_loaded_is_done_without(error, is_told, tmp_path, monkeypatch, caplog):
    (tmp_path / "numba.py").write_text(f"raise {error}('Numba needs NumPy 2.4 or less')")
    for name in [name for name in sys.modules if name.split(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert compiled_loops.__wrapped__() is None
    assert ("Numba needs NumPy 2.4 or less" in caplog.text) == is_told

"""The index of offsets that is saved beside a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from plsc.data.sources import offset_index, open_records
from tests._support.sources import make_base64, make_tar


@pytest.mark.parametrize("make", [make_tar, make_base64])
def test_a_saved_index_is_used_until_the_file_changes(tmp_path, make, monkeypatch, caplog):
    folder = make(tmp_path / "set")
    before = list(open_records(folder))
    written = open_records(folder).save_index()
    assert [path.name.endswith(".index.npz") for path in written] == [True, True]
    used, load = [], offset_index._load
    monkeypatch.setattr(offset_index, "_load", lambda *args: used.append(load(*args)) or used[-1])
    assert list(open_records(folder)) == before
    assert [arrays is not None for arrays in used] == [True, True]
    path = Path(str(written[0])[: -len(".index.npz")])
    path.write_bytes(path.read_bytes() + bytes(512) if path.suffix == ".tar" else path.read_bytes() + b"\n")
    written[1].write_bytes(b"no index")
    assert list(open_records(folder)) == before
    assert used[2:] == [None, None]
    assert "the file has changed since" in caplog.text
    assert "the index cannot be used" in caplog.text

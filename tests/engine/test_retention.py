"""Which checkpoints are kept."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from plsc.checkpoint import order
from plsc.engine.retention import best_of, superseded


def doomed(names, **options):
    return [path.name for path in superseded([Path(name) for name in names.split()], **options)]


def test_the_newest_epochs_and_the_newest_within_an_epoch_are_kept():
    assert doomed("0 1.5 1 2 3.2 3.4", epochs=2, within=1) == ["0", "1.5", "3.2"]


def test_one_epoch_in_so_many_is_kept_for_good():
    assert doomed("0 1 2 3 4 5 6", epochs=1, within=1, every=3) == ["0", "1", "3", "4"]


def test_the_best_checkpoint_is_kept(tmp_path):
    paths = []
    for name, value in (("0", 0.5), ("1", 0.9), ("2", 0.7), ("3", 0.9), ("4", None), ("5", "x")):
        folder = tmp_path / name
        folder.mkdir()
        paths.append(folder)
        if value is not None:
            (folder / "metrics.json").write_text(json.dumps({"lfw/accuracy": value}))
    (tmp_path / "2" / "metrics.json").write_text("{")
    assert best_of(paths, "lfw.accuracy") == best_of(paths, "lfw/accuracy") == tmp_path / "3"
    assert best_of(paths, "lfw.auc") is None
    kept = superseded(paths, epochs=1, within=1, best=best_of(paths, "lfw.accuracy"))
    assert [path.name for path in kept] == ["0", "1", "2", "4"]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(1, 9)), max_size=20, unique=True),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_the_newest_is_always_kept(places, epochs, within):
    names = [str(epoch) if step is None else f"{epoch}.{step}" for epoch, step in places]
    paths = sorted(map(Path, names), key=order)
    gone = superseded(paths, epochs=epochs, within=within)
    assert set(gone) <= set(paths)
    if paths:
        assert paths[-1] not in gone
    assert len([path for path in paths if path not in gone]) <= epochs + within

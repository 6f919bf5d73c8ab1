"""Galleries: exact search, persistence, mistakes, and the threshold of a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="faiss-cpu is not installed")

from plsc import DataError, ServingError
from plsc.inference.gallery import Gallery, read_threshold
from plsc.inference.model_card import ModelCard
from tests._support.servers import EMB_DIM


def random_rows(count, seed=0):
    found = np.random.default_rng(seed).normal(size=(count, EMB_DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_search_finds_what_plain_numpy_finds():
    made, entries, probes = Gallery(EMB_DIM), random_rows(200), random_rows(20, seed=1)
    made.add([str(number) for number in range(200)], 3 * entries)
    found = made.search(probes, 4, threshold=0.4)
    cosines = probes @ entries.T
    for row, matches in zip(cosines, found):
        order = np.argsort(-row)[:4]
        assert [match.name for match in matches] == [str(number) for number in order]
        assert [match.cosine for match in matches] == pytest.approx(row[order], abs=1e-5)
        assert [match.same for match in matches] == [bool(value >= 0.4) for value in row[order]]


def test_added_and_removed_entries_persist(tmp_path):
    made, entries = Gallery(EMB_DIM), random_rows(5)
    made.add(["a", "b", "a", "c", "d"], entries)
    assert made.remove("a") == 2 and len(made) == 3 and made.names == ["b", "c", "d"]
    made.save(tmp_path / "g")
    again = Gallery.open(tmp_path / "g")
    again.add(["e"], entries[:1])
    assert [matches[0].name for matches in again.search(entries[[0, 1, 3, 4]], 1)] == ["e", "b", "c", "d"]
    assert again.names == ["b", "c", "d", "e"] and len(again.search(entries[0], 9)[0]) == 4
    again.save(tmp_path / "g", replace=True)
    assert len(Gallery.open(tmp_path / "g")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    for name in ("b", "c", "d", "e"):
        again.remove(name)
    assert again.search(entries[:1]) == [[]]


def test_mistakes_with_a_gallery(tmp_path):
    made = Gallery(EMB_DIM)
    for names, entries, message in (
        (["a"], random_rows(2), "1 names for 2 embeddings"),
        (["a"], random_rows(1)[:, :3], "expected"),
        ([""], random_rows(1), "name is empty"),
        (["a"], random_rows(1) * 0, "zero or not finite"),
        (["a"], random_rows(1) * np.nan, "zero or not finite"),
    ):
        with pytest.raises(DataError, match=message):
            made.add(names, entries)
    with pytest.raises(DataError, match="no entry is named 'x'"):
        made.remove("x")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ServingError, match="exists and is not overwritten"):
        made.save(tmp_path / "mine", replace=True)
    with pytest.raises(ServingError, match="no gallery there"):
        Gallery.open(tmp_path / "mine")
    made.add(["a"], random_rows(1))
    made.save(tmp_path / "g")
    about = json.loads((tmp_path / "g" / "gallery.json").read_text())
    (tmp_path / "g" / about["names"]).write_text('["a", "b"]')
    with pytest.raises(ServingError, match="do not belong together"):
        Gallery.open(tmp_path / "g")
    (tmp_path / "g" / about["index"]).write_bytes(b"x")
    with pytest.raises(ServingError, match="damaged"):
        Gallery.open(tmp_path / "g")


def test_the_threshold_of_a_report(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"lfw/threshold": 0.31, "lfw/accuracy": 0.9}))
    assert read_threshold(tmp_path / "r.json") == 0.31
    (tmp_path / "r.json").write_text(json.dumps({"lfw/threshold": 0.31, "cfp/threshold": 0.2}))
    assert read_threshold(tmp_path / "r.json", "cfp") == 0.2
    with pytest.raises(ServingError, match="expected one of cfp, lfw"):
        read_threshold(tmp_path / "r.json")
    with pytest.raises(ServingError, match="no report of plsc test"):
        read_threshold(tmp_path / "none.json")
    # A set of same pairs only has no threshold, which does not concern other sets. Earlier versions wrote NaN.
    for missing in ("null", "NaN", "7"):
        (tmp_path / "r.json").write_text(f'{{"lfw/threshold": 0.31, "own/threshold": {missing}}}')
        assert read_threshold(tmp_path / "r.json", "lfw") == 0.31
        with pytest.raises(ServingError, match="the set 'own' has the threshold (None|nan|7.0), expected a cosine"):
            read_threshold(tmp_path / "r.json", "own")
    (tmp_path / "r.json").write_text('{"lfw/threshold": 1.0000000000000002}')
    assert read_threshold(tmp_path / "r.json") == 1


def test_a_gallery_whose_replacement_was_killed_is_found_and_not_overwritten(tmp_path):
    gallery = Gallery(4)
    gallery.add(["ann"], np.ones([1, 4], np.float32))
    gallery.save(tmp_path / "g")
    (tmp_path / "g").rename(tmp_path / ".g.plsc-old")  # the process was killed between the two renames
    assert Gallery.open(tmp_path / "g").names == ["ann"]
    (tmp_path / "g").rename(tmp_path / ".g.plsc-old")
    with pytest.raises(ServingError, match="exists and is not overwritten"):
        Gallery(4).save(tmp_path / "g")
    assert Gallery.open(tmp_path / "g").names == ["ann"]
    assert [path.name for path in tmp_path.iterdir()] == ["g"]


def test_files_of_the_user_stay_in_a_gallery_that_is_replaced(tmp_path):
    gallery = Gallery(4)
    gallery.add(["ann"], np.ones([1, 4], np.float32))
    gallery.save(tmp_path / "g")
    (tmp_path / "g" / "ann.jpg").write_text("mine")
    gallery.save(tmp_path / "g", replace=True)
    about = json.loads((tmp_path / "g" / "gallery.json").read_text())
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == [
        "ann.jpg",
        "gallery.json",
        about["index"],
        about["names"],
    ]
    assert len(Gallery.open(tmp_path / "g")) == 1


def test_a_gallery_refuses_a_model_of_another_size_or_of_other_weights():
    card = ModelCard(
        directory=Path("m"),
        image_shape=(3, 4, 4),
        emb_dim=EMB_DIM,
        flip=False,
        pixel_mean=127.5,
        pixel_std=128.0,
        weights="a",
        plain_kernels=False,
    )
    for gallery in (Gallery(EMB_DIM), Gallery(EMB_DIM, "a")):
        gallery.check_model(card)
    with pytest.raises(ServingError, match="gallery's embeddings are of 8, the model's of 16"):
        Gallery(8).check_model(card)
    with pytest.raises(ServingError, match="built with other weights than those of m"):
        Gallery(EMB_DIM, "b").check_model(card)

"""A server searches the gallery that its folder holds now, of every kind of index."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests._support.http_calls import encode, post
from tests._support.ranks import run
from tests._support.servers import make_image, serving

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("faiss", reason="faiss-cpu is not installed")

from plsc import ServingError, load_inference_model
from plsc.inference.gallery import Gallery
from plsc.inference.model_card import read_model_card
from plsc.serving import live_gallery
from plsc.serving.live_gallery import LiveGallery

KINDS = ("flat", "sq8", "hnsw")
IMAGES = [make_image(seed) for seed in range(4)]
NAMES = ["ann", "bob", "carl", "dora"]


@pytest.fixture(scope="module")
def embeddings(model):
    return load_inference_model(model).embed(IMAGES)


@pytest.fixture
def card(model):
    return read_model_card(model)


def save(folder, embeddings, names, index="flat"):
    made = Gallery(embeddings.shape[1], index=index)
    made.add(names, embeddings[: len(names)])
    made.save(folder, replace=True)


def edit(folder, change):
    with Gallery.editing(folder) as gallery:
        change(gallery)


def test_what_others_save_is_found_and_a_search_goes_on_with_what_it_has(tmp_path, embeddings, card):
    save(tmp_path / "g", embeddings, NAMES[:2])
    live = LiveGallery(tmp_path / "g", card)
    first = live.current
    live.refresh()
    assert live.current is first
    edit(tmp_path / "g", lambda gallery: gallery.remove("ann"))
    live.refresh()
    assert live.current.names == ["bob"] and first.names == ["ann", "bob"]
    shutil.rmtree(tmp_path / "g")
    save(tmp_path / "g", embeddings, NAMES)  # made anew
    live.refresh()
    assert live.current.names == NAMES


@pytest.mark.parametrize("fault", ["gone", "damaged", "index missing", "other model", "newer"])
def test_a_gallery_that_cannot_be_searched_leaves_the_earlier_one(
    tmp_path, embeddings, card, fault, monkeypatch, caplog
):
    folder = tmp_path / "g"
    save(folder, embeddings, NAMES[:2])
    live = LiveGallery(folder, card)
    edit(folder, lambda gallery: gallery.remove("ann"))
    about = json.loads((folder / "gallery.json").read_text())
    shutil.copytree(folder, tmp_path / "sound")
    if fault == "gone":
        shutil.rmtree(folder)
    elif fault == "damaged":
        (folder / "gallery.json").write_text("{")
    elif fault == "index missing":
        (folder / about["index"]).unlink()
    elif fault == "other model":
        (folder / "gallery.json").write_text(json.dumps({**about, "weights": "others"}))
    else:
        (folder / "gallery.json").write_text(json.dumps({**about, "version": 99}))
    monkeypatch.setattr(live_gallery, "_PAUSE", 0)
    for _ in range(3):
        live.refresh()
        assert live.current.names == ["ann", "bob"]
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1 and "The server keeps the gallery that it has, of 2 entries" in told[0]
    # As where it is copied there file by file: gallery.json is as it was when its index comes.
    shutil.copytree(tmp_path / "sound", folder, dirs_exist_ok=True)
    live.refresh()
    assert live.current.names == ["bob"] and "it has 1 entry now" in caplog.text
    with pytest.raises(ServingError, match="no gallery there"):
        LiveGallery(tmp_path / "none", card)


def test_a_fault_is_not_tried_at_every_look(tmp_path, embeddings, card, monkeypatch):
    save(tmp_path / "g", embeddings, NAMES)
    live, tried = LiveGallery(tmp_path / "g", card), []
    (tmp_path / "g" / "gallery.json").write_text("{")
    real = Gallery.open
    monkeypatch.setattr(Gallery, "open", lambda folder: tried.append(folder) or real(folder))
    for _ in range(5):
        live.refresh()
    assert len(tried) == 1
    save(tmp_path / "new", embeddings, NAMES[:1])
    shutil.copytree(tmp_path / "new", tmp_path / "g", dirs_exist_ok=True)
    live.refresh()  # another version is tried at once
    assert live.current.names == NAMES[:1]


def identified(server, images, **query):
    reply = post(server, "/identify?k=4", {"images": encode(images)})
    assert reply.status == 200, reply.data
    return [[match["name"] for match in matches] for matches in json.loads(reply.data)["results"]]


def wait_for(found, expected):
    for _ in range(200):
        if found() == expected:
            return
        time.sleep(0.1)
    raise AssertionError(f"{found()}, expected {expected}")


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.parametrize("index", KINDS)
def test_a_person_who_is_removed_is_found_no_more(model, embeddings, tmp_path, index):
    folder = tmp_path / "g"
    save(folder, embeddings, NAMES, index)
    with serving(model, "--gallery", folder, "--threshold", 0.9, "--no-access-log", log=tmp_path / "log") as server:
        assert [names[0] for names in identified(server, IMAGES)] == NAMES
        reply = json.loads(post(server, "/identify?k=1", {"images": encode(IMAGES[:1])}).data)
        (match,) = reply["results"][0]
        assert match["same"] is True and match["cosine"] == pytest.approx(1, abs=0.01 if index == "sq8" else 0)
        # Requests go on while the gallery is exchanged: each is answered by one whole gallery.
        with ThreadPoolExecutor(2) as pool:
            asking = [
                pool.submit(lambda: [sorted(identified(server, [IMAGES[1]])[0]) for _ in range(80)]) for _ in "ab"
            ]
            run([sys.executable, "-m", "plsc", "gallery", "remove", folder, "ann"])
            wait_for(lambda: sorted(identified(server, IMAGES[:1])[0]), NAMES[1:])
            answers = {tuple(answer) for done in asking for answer in done.result()}
        assert answers <= {tuple(NAMES), tuple(NAMES[1:])}
        # A damaged one changes nothing; what is sound again is taken.
        about = (folder / "gallery.json").read_bytes()
        (folder / "gallery.json").write_text("{")
        wait_for(lambda: "The server keeps the gallery that it has" in server.text(), True)
        assert sorted(identified(server, IMAGES[:1])[0]) == NAMES[1:]
        (folder / "gallery.json").write_bytes(about)
        edit(folder, lambda gallery: gallery.add("ann again", embeddings[0]))
        wait_for(lambda: identified(server, IMAGES[:1])[0][0], "ann again")
        edit(folder, lambda gallery: gallery.remove(gallery.names))
        wait_for(lambda: identified(server, IMAGES[:1]), [[]])
        assert "Traceback" not in server.text() and os.path.exists(folder)

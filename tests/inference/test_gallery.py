"""Galleries: exact search, persistence, mistakes, and the threshold of a report."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="faiss-cpu is not installed")

import faiss

from plsc import ConfigError, DataError, ServingError
from plsc.inference.gallery import Gallery, read_threshold
from plsc.inference.model_card import ModelCard
from tests._support.killing import kill_at_each_step
from tests._support.servers import EMB_DIM
from tests._support.stress import stress_processes, stress_threads

KINDS = ("flat", "sq8", "hnsw")


def random_rows(count, seed=0, dimension=EMB_DIM):
    found = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def a_gallery(*names, index="flat"):
    """A gallery of these names, row i of `random_rows` for name i."""
    made = Gallery(EMB_DIM, index=index)
    made.add(names, random_rows(len(names)))
    return made


def forked(function, timeout=60):
    """Call a function in a forked process; returns a function that waits for it and checks that it went well."""
    child = os.fork()
    if not child:
        signal.alarm(timeout)
        try:
            function()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)

    def wait():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    return wait


def names_in(folder):
    return Gallery.open(folder).names


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
        (["a"], random_rows(2), "1 name for 2 embeddings"),
        (["a"], random_rows(1)[:, :3], "expected"),
        ([""], random_rows(1), "name is empty"),
        ([" \t"], random_rows(1), "name is empty"),
        (["a", "b"], [[1.0] * EMB_DIM, [1.0] * 3], "expected"),
        (["a"], None, "expected"),
        (["a"], random_rows(1) * 0, "zero or not finite"),
        (["a"], random_rows(1) * 1e-14, "zero or not finite"),
        (["a"], random_rows(1) * np.nan, "zero or not finite"),
    ):
        with pytest.raises(DataError, match=message):
            made.add(names, entries)
    made.add(["anna"], random_rows(1))
    with pytest.raises(DataError, match="no entry is named 'x'; it has"):
        made.remove("x")
    with pytest.raises(DataError, match="no entry is named 'ana'; did you mean 'anna'?"):
        made.remove("ana")
    with pytest.raises(DataError, match=r"a name is empty or no text \(None\)"):
        made.remove(None)
    for count in (0, -1, 2.5, "3", None):
        with pytest.raises(DataError, match="got the count .*, expected a whole number of 1 or more"):
            made.search(random_rows(1), count)
    for threshold in (2, "0.3", np.nan):
        with pytest.raises(DataError, match="got the threshold .*, expected a cosine of -1 to 1"):
            made.search(random_rows(1), threshold=threshold)
    for given in (("model",), (0,), ("a" * 64, EMB_DIM), (EMB_DIM, None)):
        with pytest.raises(ConfigError, match=r"expected the .*Gallery\(model.emb_dim, model.card.weights"):
            Gallery(*given)
    made.remove("anna")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ServingError, match="exists and is not overwritten"):
        made.save(tmp_path / "mine", replace=True)
    with pytest.raises(ServingError, match="no gallery there"):
        Gallery.open(tmp_path / "mine")
    made.add(["a"], random_rows(1))
    made.save(tmp_path / "g")
    with pytest.raises(ServingError, match="choose another name; to replace the gallery there, give replace=True"):
        made.save(tmp_path / "g")
    assert repr(made) == f"Gallery({EMB_DIM}, index='flat') of 1 entry"
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
    with pytest.raises(ServingError, match="r.json has several sets; choose one of cfp, lfw with name=..."):
        read_threshold(tmp_path / "r.json")
    with pytest.raises(ServingError, match="r.json has no set 'cpf'; choose one of cfp, lfw with name=..."):
        read_threshold(tmp_path / "r.json", "cpf")
    with pytest.raises(ServingError, match="none.json: cannot be read: No such file or directory; plsc test ... >"):
        read_threshold(tmp_path / "none.json")
    for text, message in (("", "empty, as plsc test leaves it"), ("x", "no report"), ("{}", "no report"), ("[]", "no")):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ServingError, match=f"r.json: {message}"):
            read_threshold(tmp_path / "r.json")
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
    with pytest.raises(ServingError, match="gallery's embeddings are of 8, those of the model in m of 16"):
        Gallery(8).check_model(card)
    with pytest.raises(ServingError, match="built with other weights than those of m"):
        Gallery(EMB_DIM, "b").check_model(card)


@pytest.mark.parametrize("dimension", [0, -1, 2.5, "8", None, True, 1 << 40])
def test_a_dimension_that_is_none(dimension):
    with pytest.raises(ConfigError, match="gallery: got embeddings of .*, expected the model's emb_dim, 1 to"):
        Gallery(dimension)
    assert Gallery(np.int64(8)).dimension == 8


@pytest.mark.parametrize("index", KINDS)
def test_searches_that_ask_for_what_there_is_not(index):
    made = a_gallery("ann", "bob", index=index)
    for count in (0, -1, 2.5, "5", None, True, float("nan")):
        with pytest.raises(DataError, match="got the count .*, expected a whole number of 1 or more"):
            made.search(random_rows(1), count)
    for threshold in ("0.5", True, float("nan"), 2, [0.5, 0.5], 1j):
        with pytest.raises(DataError, match="got the threshold .*, expected a cosine of -1 to 1"):
            made.search(random_rows(1), threshold=threshold)
    (found,) = made.search(random_rows(1), np.int64(9), threshold=np.float32(0.5))
    assert len(found) == 2 and found[0].same is True and json.dumps(found[0].as_dict())


# Several writers


def test_a_save_never_undoes_what_another_one_did(tmp_path):
    folder = tmp_path / "g"
    a_gallery("ann", "bob").save(folder)
    one, other, third = (Gallery.open(folder) for _ in range(3))
    one.add("carl", random_rows(1, seed=1))
    one.save(folder, replace=True)
    other.add("dora", random_rows(1, seed=2))
    with pytest.raises(ServingError, match="has been changed since this one was opened.*Gallery.editing"):
        other.save(folder, replace=True)
    assert names_in(folder) == ["ann", "bob", "carl"]
    one.remove("ann")
    one.save(folder, replace=True)  # its own saves are no changes by another
    with pytest.raises(ServingError, match="has been changed since"):
        third.save(folder, replace=True)
    assert names_in(folder) == ["bob", "carl"]
    # What was saved elsewhere meanwhile makes no difference.
    other.save(tmp_path / "other")
    with pytest.raises(ServingError, match="has been changed since"):
        other.save(folder, replace=True)
    # A gallery made anew, which has not read the folder, replaces what is there.
    a_gallery("erik").save(folder, replace=True)
    assert names_in(folder) == ["erik"]


def test_a_gallery_that_was_removed_is_not_made_again_by_those_who_have_it_open(tmp_path):
    a_gallery("ann").save(tmp_path / "g")
    opened = Gallery.open(tmp_path / "g")
    (tmp_path / "g").rename(tmp_path / "archive")
    with pytest.raises(ServingError, match="has been removed since it was opened"):
        opened.save(tmp_path / "g", replace=True)
    opened.save(tmp_path / "g")
    a_gallery("bob").save(tmp_path / "new")
    with pytest.raises(ServingError, match="exists and is not overwritten"):
        opened.save(tmp_path / "new")


def test_editing_saves_what_was_changed_and_nothing_else(tmp_path):
    folder = tmp_path / "g"
    a_gallery("ann", "bob").save(folder)
    before = (folder / "gallery.json").read_bytes()
    with Gallery.editing(folder) as gallery:
        assert gallery.names == ["ann", "bob"]
    with pytest.raises(OSError, match="mine"), Gallery.editing(folder) as gallery:
        gallery.remove("ann")
        raise OSError("mine")
    assert (folder / "gallery.json").read_bytes() == before
    with Gallery.editing(folder) as gallery:
        gallery.remove("ann")
        gallery.save(tmp_path / "copy")
        gallery.add("carl", random_rows(1))
        gallery.save(folder, replace=True)
        gallery.remove("bob")
        with pytest.raises(ServingError, match="this thread is changing it already"), Gallery.editing(folder):
            pass
    assert names_in(folder) == ["carl"] and names_in(tmp_path / "copy") == ["bob"]
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(ServingError, match="no gallery there"), Gallery.editing(missing):
            pass


def test_processes_and_threads_that_edit_one_folder_keep_all_entries(tmp_path):
    folder, rows = tmp_path / "g", random_rows(64)
    made = Gallery(EMB_DIM)
    made.add([f"old {number}" for number in range(8)], rows[:8])
    made.save(folder)
    stop = threading.Event()

    def edit(writer):
        for turn in range(4):
            with Gallery.editing(folder) as gallery:
                gallery.add(f"{writer} {turn}", rows[8 + 4 * writer + turn])
                gallery.remove(f"old {writer}") if not turn else None

    def read():
        count = 0
        while not stop.is_set():
            gallery = Gallery.open(folder)
            names = gallery.names
            assert [matches[0].cosine for matches in gallery.search(rows[: len(names)], 1)]
            assert len(set(names)) == len(names)
            for name in names:
                kind, number = name.split()
                row = rows[int(number)] if kind == "old" else rows[8 + 4 * int(kind) + int(number)]
                assert gallery.search(row, 1)[0][0].cosine == 1 and gallery.search(row, 1)[0][0].name == name
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        waits = [forked(lambda writer=writer: edit(writer)) for writer in range(3)]
        reading = threads.submit(read)
        list(threads.map(edit, (3, 4)))
        for wait in waits:
            wait()
        stop.set()
        assert reading.result() > 2
    expected = {f"old {number}" for number in range(5, 8)} | {
        f"{writer} {turn}" for writer in range(5) for turn in range(4)
    }
    assert set(names_in(folder)) == expected and len(names_in(folder)) == len(expected)
    assert len(list(folder.iterdir())) == 3 and os.listdir(tmp_path) == ["g"]


def test_a_gallery_that_is_opened_while_a_process_saves_it_is_whole(tmp_path):
    folder = tmp_path / "g"
    a_gallery("0").save(folder)

    def save():
        gallery = Gallery.open(folder)
        for number in range(1, 80):
            gallery.add(str(number), random_rows(1, seed=number))
            gallery.save(folder, replace=True)

    wait, seen = forked(save), []
    while not seen or seen[-1] < 80:
        gallery = Gallery.open(folder)
        seen.append(len(gallery))
        assert gallery.names == [str(number) for number in range(len(gallery))]
        assert gallery.search(random_rows(1, seed=len(gallery) - 1), 1)[0][0].name == gallery.names[-1]
    wait()
    assert len(set(seen)) > 5


@pytest.mark.parametrize("index", KINDS)
def test_one_folder_and_one_object_under_many_hands(tmp_path, index, stress_seconds):
    """Threads of several processes edit and read one folder and a gallery of the process, beside each other."""
    folder, rows = tmp_path / "g", random_rows(40)
    shared = a_gallery(*[f"base {number}" for number in range(40)], index=index)
    lone = [shared.search(row, 1)[0][0] for row in rows]
    shared.save(folder)

    own = threading.local()  # the entries that this thread has in the folder

    def work(rng):
        at, name = int(rng.integers(40)), uuid.uuid4().hex
        own.names = [*getattr(own, "names", []), name]
        own.file = getattr(own, "file", tmp_path / f"names of {name}")
        with Gallery.editing(folder) as gallery:
            gallery.add(name, random_rows(1, seed=int(rng.integers(1000, 1 << 32))))
            if len(own.names) > 3:
                assert gallery.remove(own.names.pop(0)) == 1
            assert gallery.search(rows[at], 1)[0][0] == lone[at]
        opened = Gallery.open(folder)
        assert opened.search(rows[at], 1)[0][0] == lone[at] and set(own.names) <= set(opened.names)
        own.file.write_text(json.dumps(own.names))
        shared.add([name, name], random_rows(2, seed=int(rng.integers(1000, 1 << 32))))
        assert shared.search(rows[[at, at]], 2)[1][0] == lone[at]
        assert shared.remove(name) == 2

    assert stress_processes(work, stress_seconds / 2, processes=3, threads=2) > 6
    assert stress_threads(work, stress_seconds / 2) > 4
    left = {name for path in tmp_path.glob("names of *") for name in json.loads(path.read_text())}
    assert len(left) > 6 and set(names_in(folder)) == left | {match.name for match in lone}
    assert len(os.listdir(folder)) == 3 and sorted(shared.names) == sorted(match.name for match in lone)


# What a kill leaves


def test_a_kill_at_any_step_of_a_save_leaves_the_earlier_gallery_or_the_new_one(tmp_path):
    def prepare(root):
        a_gallery("ann", "bob").save(root / "g")
        (root / "g" / "mine.txt").write_text("precious")

    def remove(root):
        with Gallery.editing(root / "g") as gallery:
            gallery.remove("ann")

    found = []
    for state in kill_at_each_step(prepare, remove, tmp_path):
        with pytest.raises(ServingError, match="exists and is not overwritten"):
            a_gallery("else").save(state / "g")
        gallery = Gallery.open(state / "g")
        found.append(gallery.names)
        assert gallery.search(random_rows(2), 1)[1][0].name == "bob"
        with Gallery.editing(state / "g") as gallery:
            gallery.add("carl", random_rows(1, seed=1))
        about = json.loads((state / "g" / "gallery.json").read_text())
        assert set(os.listdir(state / "g")) == {"gallery.json", "mine.txt", about["index"], about["names"]}
        assert names_in(state / "g") == [*found[-1], "carl"] and os.listdir(state) == ["g"]
    assert found[0] == ["ann", "bob"] and found[-1] == ["bob"] and len({*map(tuple, found)}) == 2


def test_a_kill_at_any_step_of_the_first_save_leaves_no_gallery_or_a_whole_one(tmp_path):
    for state in kill_at_each_step(lambda root: None, lambda root: a_gallery("ann").save(root / "g"), tmp_path):
        if (state / "g").exists():
            assert names_in(state / "g") == ["ann"]
        else:
            with pytest.raises(ServingError, match="no gallery there"):
                Gallery.open(state / "g")
            a_gallery("bob").save(state / "g")
            assert names_in(state / "g") == ["bob"] and os.listdir(state) == ["g"]


def test_a_save_that_fails_leaves_the_earlier_gallery(tmp_path, monkeypatch):
    a_gallery("ann").save(tmp_path / "g")
    before, fsync, calls = sorted(os.listdir(tmp_path / "g")), os.fsync, []

    def full_disk(handle):
        calls.append(handle)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_disk)
    for step in (1, 2, 3, 4):
        failing = step
        calls.clear()
        gallery = Gallery.open(tmp_path / "g")
        gallery.add("bob", random_rows(1))
        with pytest.raises(ServingError, match="g: cannot be written: No space left"):
            gallery.save(tmp_path / "g", replace=True)
        assert sorted(os.listdir(tmp_path / "g")) == before and names_in(tmp_path / "g") == ["ann"]
    failing = 5  # the flush of the new name
    calls.clear()
    with pytest.raises(ServingError, match="No space left"):
        gallery.save(tmp_path / "g", replace=True)
    assert names_in(tmp_path / "g") == ["ann", "bob"]


# Threads and forks


@pytest.mark.parametrize("index", KINDS)
def test_threads_change_and_search_one_gallery(index):
    rows = random_rows(400)
    gallery = Gallery(EMB_DIM, index=index)
    gallery.add([str(number) for number in range(100)], rows[:100])
    lone = [gallery.search(row, 1)[0][0] for row in rows[:100]]
    stop = threading.Event()

    def search(seed):
        numbers = np.random.default_rng(seed)
        count = 0
        while not stop.is_set():
            at = int(numbers.integers(100))
            batch = gallery.search(rows[[at, (at + 1) % 100]], 3, threshold=0.9)
            assert [match for matches in batch for match in matches[:1]] == [
                type(match)(match.name, match.cosine, True) for match in (lone[at], lone[(at + 1) % 100])
            ]
            assert len(gallery.names) >= 100 and len(gallery) >= 100
            count += 1
        return count

    def change(writer):
        for turn in range(20):
            at = 100 + 20 * writer + turn
            gallery.add([str(at), f"{at} again"], np.stack([rows[at], -rows[at]]))
            if index != "hnsw":
                assert gallery.search(rows[at], 1)[0][0].name == str(at)
            assert gallery.remove(str(at)) == 1

    with ThreadPoolExecutor(4) as threads:
        searching = [threads.submit(search, seed) for seed in range(2)]
        changing = [threads.submit(change, writer) for writer in range(2)]
        for done in changing:
            done.result()
        stop.set()
        assert all(done.result() for done in searching)
    assert sorted(gallery.names) == sorted([str(at) for at in range(100)] + [f"{at} again" for at in range(100, 140)])


def test_a_forked_process_searches_and_changes_its_own_gallery():
    rows = random_rows(3000, dimension=64)
    gallery = Gallery(64)
    gallery.add([str(number) for number in range(3000)], rows)
    expected = gallery.search(rows[:200], 2)  # starts the threads of faiss
    stop = threading.Event()

    def change():
        while not stop.is_set():
            gallery.add("more", -rows[:1])
            gallery.remove("more")

    def check():
        assert gallery.search(rows[:200], 2) == expected
        gallery.remove("7")
        gallery.add("new", rows[7])
        assert gallery.search(rows[7], 1)[0][0].name == "new"

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for wait in [forked(check, timeout=30) for _ in range(3)]:
            wait()
    finally:
        stop.set()
        thread.join()
    assert gallery.search(rows[7], 1)[0][0].name == "7"


@pytest.mark.parametrize("index", KINDS)
def test_a_gallery_is_copied_and_pickled(index):
    made = a_gallery("ann", "bob", "carl", index=index)
    made.remove("bob")
    before = made.search(random_rows(3))
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.search(random_rows(3)) == before
        other.add("dora", random_rows(1, seed=1))
        other.remove("ann")
        assert other.names == ["carl", "dora"] and len(other) == 2
        assert made.names == ["ann", "carl"] and len(made) == 2 and made.search(random_rows(3)) == before


# Names, cosines and files of other kinds


def test_names_that_are_no_list_of_texts_are_refused():
    gallery = Gallery(EMB_DIM)
    for names, message in (
        ("ann", r"the one name 'ann' for 3 embeddings, expected one each.*\['ann'\] \* 3"),
        ({"a", "b", "c"}, "got the names as a set"),
        ({"a": 1, "b": 2, "c": 3}, "got the names as a dict"),
        (None, "got the names as a NoneType"),
        (5, "got the names as a int"),
        (["a", "b", None], "no text"),
        (["a", "b", os.fsdecode("张三".encode("gbk"))], "is not UTF-8 .in GBK it is '张三'"),
    ):
        with pytest.raises(DataError, match=message):
            gallery.add(names, random_rows(3))
    assert len(gallery) == 0 and gallery.names == []
    gallery.add("ann", random_rows(1))
    gallery.add(np.array(["bob"]), random_rows(1)[0])
    assert gallery.names == ["ann", "bob"] and all(type(name) is str for name in gallery.names)
    with pytest.raises(DataError, match="no entry is named 'x'"):
        gallery.remove(["ann", "x"])
    for names in ([None], [""], None, 5):
        with pytest.raises(DataError, match="no text"):
            gallery.remove(names)
    assert gallery.remove([]) == 0 and gallery.remove(["ann", "bob", "ann"]) == 2


@pytest.mark.parametrize("dimension", [2, 16, 512])
def test_every_entry_has_cosine_1_with_itself_and_none_has_more(dimension):
    rows = random_rows(2000, dimension=dimension) * np.random.default_rng(1).uniform(0.01, 100, (2000, 1))
    gallery = Gallery(dimension)
    gallery.add([str(number) for number in range(2000)], rows)
    found = gallery.search(rows, 2, threshold=1)
    assert all(matches[0].cosine == 1 and matches[0].same for matches in found)
    cosines = [match.cosine for matches in found for match in matches]
    assert all(-1 <= cosine <= 1 and cosine == round(cosine, 7) for cosine in cosines)
    for at in range(0, 2000, 100):  # as it finds each alone
        assert gallery.search(rows[at], 2, threshold=1) == [found[at]]
    opposite = gallery.search(-rows[:5], 2000, threshold=-1)
    assert all(matches[-1].cosine == -1 and matches[-1].same for matches in opposite)
    assert gallery.search(rows[0], 1, threshold=1.0000000000000002)[0][0].same
    for threshold in (1.1, -2, float("nan")):
        with pytest.raises(DataError, match="expected a cosine of -1 to 1"):
            gallery.search(rows[:1], threshold=threshold)


def put_index(folder, index):
    """Put a faiss index in place of a gallery's."""
    faiss.write_index(index, str(folder / json.loads((folder / "gallery.json").read_text())["index"]))


def test_an_index_of_another_kind_is_refused_by_what_it_is(tmp_path):
    folder, rows = tmp_path / "g", random_rows(2)
    a_gallery("ann", "bob").save(folder)
    l2, plain, quantized = faiss.IndexFlatL2(EMB_DIM), faiss.IndexFlatIP(EMB_DIM), faiss.IndexPQ(EMB_DIM, 2, 1)
    quantized.train(random_rows(99))
    for index in (l2, plain, quantized):
        index.add(rows)
    numbered = faiss.IndexIDMap2(faiss.IndexFlatIP(EMB_DIM))
    numbered.add_with_ids(rows, np.arange(2))
    graph = faiss.IndexHNSWFlat(EMB_DIM, 8, faiss.METRIC_L2)
    for index, message in (
        (l2, "found IndexFlatL2 with L2 distances, expected the kind 'flat' with inner products"),
        (quantized, "found IndexPQ with L2 distances"),
        (graph, "found IndexHNSWFlat with L2 distances"),
        (faiss.IndexFlatIP(3), "holds embeddings of 3, gallery.json says 16"),
        (faiss.IndexFlatIP(EMB_DIM), "do not belong together"),
        (numbered, "do not belong together"),
    ):
        put_index(folder, index)
        with pytest.raises(ServingError, match=f"g: the gallery is damaged: .*{message}.*; build it again"):
            Gallery.open(folder)
    put_index(folder, plain)
    assert names_in(folder) == ["ann", "bob"]


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "garbage", "other"])
def test_damage_is_told(tmp_path, damage):
    folder = tmp_path / "g"
    for name in ("gallery.json", "index", "names"):
        a_gallery("ann", "bob").save(folder, replace=True)
        path = folder / json.loads((folder / "gallery.json").read_text()).get(name, name)
        content = path.read_bytes()
        changed = {"cut": content[:-7], "empty": b"", "garbage": b"\xff" * len(content), "other": b'{"a": [1]}'}
        path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
        message = "no gallery there" if damage == "gone" and name == "gallery.json" else f"is damaged: .*{path.name}"
        with pytest.raises(ServingError, match=message):
            Gallery.open(folder)
        (folder / "gallery.json").write_text("{}")


def test_other_files_than_its_own_are_not_read_and_newer_galleries_are_refused(tmp_path):
    folder = tmp_path / "g"
    a_gallery("ann").save(folder)
    about = json.loads((folder / "gallery.json").read_text())
    (tmp_path / "names.json").write_text('["eve"]')
    for changes, message in (
        ({"names": "../names.json"}, "names the file '../names.json', expected one of a gallery"),
        ({"version": 3}, "found a gallery of version 3, expected 2 or lower; install a newer plsc"),
        ({"kind": "ivf"}, "got the index 'ivf'; .*accepted: flat, sq8, hnsw"),
        ({"dimension": None}, "gallery.json says None"),
        ({"index": None}, "names the file 'None'"),
    ):
        (folder / "gallery.json").write_text(json.dumps({**about, **changes}))
        with pytest.raises(ServingError, match=message):
            Gallery.open(folder)
    if os.getuid():
        (folder / "gallery.json").chmod(0)
        with pytest.raises(ServingError, match="cannot be read: Permission denied"):
            Gallery.open(folder)


def test_a_gallery_of_version_1_is_read_and_saved_as_version_2(tmp_path):
    folder, rows = tmp_path / "g", random_rows(4)
    folder.mkdir()
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(EMB_DIM))
    index.add_with_ids(rows, np.arange(4))
    index.remove_ids(np.array([1]))
    about = {"format": "plsc-gallery", "version": 1, "dimension": EMB_DIM, "weights": "w", "next": 4}
    names = {"0": "ann", "2": "carl", "3": "dora"}
    (folder / "gallery.json").write_text(json.dumps({**about, "names": names}))
    faiss.write_index(index, str(folder / "index.faiss"))
    one, other = Gallery.open(folder), Gallery.open(folder)
    assert one.names == ["ann", "carl", "dora"] and one.weights == "w" and one.index == "flat"
    assert [matches[0].name for matches in one.search(rows[[0, 2, 3]], 1)] == one.names
    one.remove("ann")
    one.save(folder, replace=True)
    with pytest.raises(ServingError, match="has been changed since"):
        other.save(folder, replace=True)
    assert not (folder / "index.faiss").exists() and len(os.listdir(folder)) == 3
    again = Gallery.open(folder)
    assert [matches[0].name for matches in again.search(rows[[2, 3]], 1)] == again.names == ["carl", "dora"]
    # Its index must have numbers, and those of its names.
    plain, other_numbers = faiss.IndexFlatIP(EMB_DIM), faiss.IndexIDMap2(faiss.IndexFlatIP(EMB_DIM))
    plain.add(rows[:3])
    other_numbers.add_with_ids(rows[:3], np.arange(3))
    for wrong in (plain, other_numbers, faiss.IndexIDMap2(faiss.IndexFlatL2(EMB_DIM))):
        (folder / "gallery.json").write_text(json.dumps({**about, "names": names}))
        faiss.write_index(wrong, str(folder / "index.faiss"))
        with pytest.raises(ServingError, match="index.faiss.*(do not belong together|found IndexIDMap2 with L2)"):
            Gallery.open(folder)


# Quantized and graph indexes


@pytest.mark.parametrize("index", KINDS)
def test_every_kind_finds_adds_removes_and_persists(tmp_path, index):
    rows = random_rows(600, dimension=64)
    gallery = Gallery(64, "w", index=index)
    gallery.add([str(number) for number in range(500)], rows[:500])
    gallery.save(tmp_path / "g")
    gallery = Gallery.open(tmp_path / "g")
    assert (gallery.index, gallery.weights, len(gallery)) == (index, "w", 500)
    found = gallery.search(rows[:500], 1, threshold=0.98)
    assert np.mean([matches[0].name == str(number) for number, matches in enumerate(found)]) > 0.99
    assert all(matches[0].same for matches in found)
    noisy = rows[:500] + 0.5 * random_rows(500, seed=1, dimension=64)
    cosines = noisy / np.linalg.norm(noisy, axis=1, keepdims=True) @ rows[:500].T
    best = [matches[0] for matches in gallery.search(noisy, 1)]
    assert np.mean([int(match.name) for match in best] == cosines.argmax(axis=1)) > 0.99
    error = [abs(match.cosine - row[int(match.name)]) for match, row in zip(best, cosines)]
    assert max(error) < (0.01 if index == "sq8" else 1e-6)
    for doomed in range(0, 40):
        assert gallery.remove(str(doomed)) == 1
    gallery.add("new", rows[500])
    gallery.save(tmp_path / "g", replace=True)
    gallery = Gallery.open(tmp_path / "g")
    assert len(gallery) == len(gallery.names) == 461 and gallery.names[0] == "40" and gallery.names[-1] == "new"
    everything = gallery.search(rows[:3], 461)
    assert all(len(matches) >= 455 for matches in everything)  # a graph may miss some
    assert not {match.name for matches in everything for match in matches} & {str(doomed) for doomed in range(40)}
    assert gallery.search(rows[500], 1)[0][0].name == "new"
    for doomed in gallery.names:
        gallery.remove(doomed)
    assert gallery.search(rows[:1]) == [[]]
    gallery.save(tmp_path / "g", replace=True)
    gallery = Gallery.open(tmp_path / "g")
    assert len(gallery) == 0
    gallery.add("first", rows[0])
    assert gallery.search(rows[0], 3)[0][0].name == "first"


@pytest.mark.parametrize("index", KINDS)
def test_a_removed_embedding_is_on_no_disk(tmp_path, index):
    gallery = a_gallery(*map(str, range(20)), index=index)
    row = gallery._rows(random_rows(20))[3]
    gallery.save(tmp_path / "g")

    def holds():
        path = tmp_path / "g" / json.loads((tmp_path / "g" / "gallery.json").read_text())["index"]
        return row.tobytes() in path.read_bytes()

    assert holds() or index == "sq8"
    gallery.remove("3")
    gallery.save(tmp_path / "g", replace=True)
    assert not holds() and len(Gallery.open(tmp_path / "g")._names) == (20 if index == "hnsw" else 19)
    gallery.remove(["4", "5", "6", "7"])  # the graph is made again
    gallery.save(tmp_path / "g", replace=True)
    assert len(Gallery.open(tmp_path / "g")._names) == 15
    assert [matches[0].name for matches in gallery.search(random_rows(20)[[2, 19]], 1)] == ["2", "19"]


def test_the_range_of_a_quantized_index_follows_its_entries():
    """A row far from a random direction has numbers beyond 6 / sqrt(D)."""
    rows = random_rows(300, dimension=256)
    gallery = Gallery(256, index="sq8")
    gallery.add([str(number) for number in range(300)], rows)
    axes = np.eye(256)[:3] + 0.1 * random_rows(3, dimension=256)
    gallery.add(["x", "y", "z"], axes)
    assert [matches[0].name for matches in gallery.search(axes, 1)] == ["x", "y", "z"]
    found = gallery.search(np.concatenate([axes, rows]), 1)
    assert min(matches[0].cosine for matches in found) > 0.995
    assert [matches[0].name for matches in found[3:]] == [str(number) for number in range(300)]
    with pytest.raises(ConfigError, match="got the index 'sq4'; did you mean 'sq8'"):
        Gallery(256, index="sq4")

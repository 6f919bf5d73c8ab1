"""The classifier of an export: names, probabilities and scores beside slow ones, damage, threads."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plsc import ExportError, ServingError, load_inference_model
from plsc.data.images import decode
from plsc.inference import classifier as module
from plsc.inference.classifier import Classifier
from plsc.inference.model_card import ABOUT_FILE, CLASSIFIER_FILE, read_model_card
from tests._support.closed_sets import make_centers, make_checkpoint, make_classifier, slow_scores
from tests._support.exporting import EMB_DIM, eager
from tests._support.servers import make_image
from tests._support.stress import compared, stress_threads

IMAGES = [make_image(seed) for seed in range(7)]
NAMES = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, network, head's weight): eight named classes."""
    folder = tmp_path_factory.mktemp("classifier") / "m"
    return folder, *make_classifier(folder, names=NAMES)


@pytest.fixture(scope="module")
def loaded(exported):
    return load_inference_model(exported[0])


def features_of(made, *, flip=True):
    pixels = np.stack([decode(image) for image in IMAGES])
    return (eager(made, pixels) + eager(made, pixels[:, :, ::-1])) / 2 if flip else eager(made, pixels)


def expected_rows(features, weight, bias=None, *, scale, names=NAMES):
    """[(name, number, probability, score), ...] of all classes for each feature, in order."""
    rows = []
    for feature in features:
        scores = np.array(slow_scores(feature, weight, bias, is_cosine=bias is None))
        logits = scale * scores
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        order = sorted(range(len(scores)), key=lambda number: (-scores[number], number))
        rows.append([(names[number], number, shares[number], scores[number]) for number in order])
    return rows


def assert_close(found, expected, top):
    assert len(found) == len(expected)
    for row, other in zip(found, expected):
        assert [(each.name, each.number) for each in row] == [(name, number) for name, number, *_ in other[:top]]
        assert [each.probability for each in row] == pytest.approx([share for *_, share, _ in other[:top]], abs=1e-4)
        assert [each.score for each in row] == pytest.approx([score for *_, score in other[:top]], abs=1e-4)


@pytest.mark.parametrize("top", [1, 3, 5, 100])
def test_classes_and_probabilities_are_those_of_slow_loops(exported, loaded, top):
    _, made, weight = exported
    expected = expected_rows(features_of(made), weight, scale=16.0)
    found = loaded.classify(IMAGES, top)
    assert_close(found, expected, top)
    assert len(found[0]) == min(top, 8)
    if top == 100:
        assert [sum(each.probability for each in row) for row in found] == pytest.approx([1.0] * 7, abs=1e-9)
    for batch_size in (1, 3):
        assert_close(loaded.classify(iter(IMAGES), top, batch_size=batch_size), expected, top)
    assert_close(loaded.classify(IMAGES[0], top), expected[:1], top)
    assert loaded.classify([], top) == []


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("bake", [(), ("preprocess",)])
def test_a_softmax_head_takes_lengths_and_its_bias(tmp_path, flip, bake):
    bias = np.linspace(-1, 1, 8).astype(np.float32)
    made, weight = make_classifier(tmp_path / "m", bias=bias, names=NAMES, flip=flip, bake=bake)
    expected = expected_rows(features_of(made, flip=flip), weight, bias, scale=1.0)
    assert_close(load_inference_model(tmp_path / "m").classify(IMAGES, 8), expected, 8)


def test_a_baked_unit_length_leaves_nothing_for_a_softmax_head(tmp_path):
    with pytest.raises(ExportError, match="leave 'normalize' or the classifier out"):
        make_classifier(tmp_path / "m", bias=np.zeros(8, np.float32), bake=("normalize",))
    made, weight = make_classifier(tmp_path / "n", names=NAMES, bake=("normalize",))
    assert_close(
        load_inference_model(tmp_path / "n").classify(IMAGES, 8),
        expected_rows(features_of(made), weight, scale=16.0),
        8,
    )


def test_classes_without_names_are_numbers(tmp_path):
    make_classifier(tmp_path / "m")
    (row,) = load_inference_model(tmp_path / "m").classify(IMAGES[0], 8)
    assert sorted(each.name for each in row) == list("01234567")
    make_classifier(tmp_path / "n", names=NAMES[:2])  # more class centers than the data has classes
    (row,) = load_inference_model(tmp_path / "n").classify(IMAGES[0], 8)
    assert sorted(each.name for each in row) == ["2", "3", "4", "5", "6", "7", "ant", "bee"]


def test_names_of_any_kind(tmp_path):
    names = ["a\nb", "", "ü", "c\udcff", "x" * 1000, "日本", "\\", '"']
    make_classifier(tmp_path / "m", names=names)
    (row,) = load_inference_model(tmp_path / "m").classify(IMAGES[0], 8)
    assert sorted(each.name for each in row) == sorted([*names[:3], "c\ufffd", *names[4:]])
    json.dumps([each.as_dict() for each in row]).encode()


def test_an_export_without_a_classifier_says_so(model):
    assert read_model_card(model).classifier is None
    with pytest.raises(ServingError, match=r"has no classifier; .* convert_for_prediction\(classifier=True\)"):
        load_inference_model(model).classify(IMAGES)


def test_numbers_that_are_none(loaded):
    for top in (0, -1, 2.5, "3", True):
        with pytest.raises(ServingError, match="classify: got top"):
            loaded.classify(IMAGES, top)
    with pytest.raises(ServingError, match="classify: got batch_size 0"):
        loaded.classify(IMAGES, batch_size=0)


def test_the_file_is_one_that_others_read(exported):
    folder, _, weight = exported
    tensors = load_file(folder / CLASSIFIER_FILE)
    assert set(tensors) == {"centers", "names.text", "names.ends"}
    unit = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    assert np.abs(tensors["centers"] - unit).max() < 1e-6
    assert tensors["names.text"].tobytes().decode() == "".join(NAMES)
    card = json.loads((folder / ABOUT_FILE).read_text())
    assert CLASSIFIER_FILE in card["files"]
    assert {**card["classifier"], "names": 0} == {
        "classes": 8,
        "score": "cosine",
        "scale": 16.0,
        "subcenters": 1,
        "names": 0,
    }


def test_a_second_export_without_a_classifier_removes_it(tmp_path):
    from plsc.export.export import export_backbone
    from tests._support.exporting import network, settings

    make_classifier(tmp_path / "m", names=NAMES)
    export_backbone(network(), settings(), directory=tmp_path / "m")
    assert not (tmp_path / "m" / CLASSIFIER_FILE).exists()


# Damage


def flipped(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0, 3, 20, 300, -1, -10, -100])
def test_a_damaged_byte_is_found(exported, tmp_path, place):
    shutil.copytree(exported[0], tmp_path / "m")
    flipped(tmp_path / "m" / CLASSIFIER_FILE, place)
    model = load_inference_model(tmp_path / "m")  # embeddings need no classifier
    assert model.embed(IMAGES[0]).shape == (1, EMB_DIM)
    with pytest.raises(ServingError, match=f"{CLASSIFIER_FILE}: the classifier cannot be read: .*; export the model"):
        model.classify(IMAGES[0])


def test_damaged_names_are_found_in_a_file_that_is_too_large_to_be_read_whole(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_DIGESTED", 10)
    shutil.copytree(exported[0], tmp_path / "m")
    load_inference_model(tmp_path / "m").classify(IMAGES[0])
    flipped(tmp_path / "m" / CLASSIFIER_FILE, -3)
    with pytest.raises(ServingError, match="the names of the classes are damaged"):
        load_inference_model(tmp_path / "m").classify(IMAGES[0])


def test_a_file_that_is_missing_cut_short_or_of_another_export(exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "m")
    file = tmp_path / "m" / CLASSIFIER_FILE
    data = file.read_bytes()
    tensors = load_file(file)
    file.write_bytes(data[:-5])
    with pytest.raises(ServingError, match="bytes, expected"):
        load_inference_model(tmp_path / "m").classify(IMAGES[0])
    card = json.loads((tmp_path / "m" / ABOUT_FILE).read_text())
    del card["files"]
    (tmp_path / "m" / ABOUT_FILE).write_text(json.dumps(card))
    save_file({**tensors, "centers": tensors["centers"][:7]}, file)
    with pytest.raises(ServingError, match=r"found \[7, 16\] of F32, expected \[8, 16\] of F32"):
        load_inference_model(tmp_path / "m").classify(IMAGES[0])
    save_file({**tensors, "centers": np.full([8, 16], np.nan, np.float32)}, file)
    with pytest.raises(ServingError, match="the center of class 0 holds nan"):
        load_inference_model(tmp_path / "m").classify(IMAGES[0])
    save_file({"centers": tensors["centers"]}, file)
    with pytest.raises(ServingError, match="names.text"):
        load_inference_model(tmp_path / "m").classify(IMAGES[0])
    file.unlink()
    with pytest.raises(ServingError, match="No such file"):
        load_inference_model(tmp_path / "m").classify(IMAGES[0])
    card["classifier"]["scale"] = "wide"
    (tmp_path / "m" / ABOUT_FILE).write_text(json.dumps(card))
    with pytest.raises(ServingError, match="damaged .*; export the model again"):
        load_inference_model(tmp_path / "m")


# Many classes


def make_many(tmp_path, classes=3000, bias=None):
    weight = make_centers(classes)
    make_classifier(tmp_path / "m", weight, bias, names=[f"n{number}" for number in range(classes)])
    rng = np.random.default_rng(0)
    features = weight[:10].repeat(4, axis=0) + rng.standard_normal((40, EMB_DIM)).astype(np.float32)
    if bias is None:
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    return read_model_card(tmp_path / "m"), weight, features.astype(np.float32)


@pytest.mark.parametrize("has_bias", [False, True])
def test_chunks_of_classes(tmp_path, monkeypatch, has_bias):
    bias = np.random.default_rng(5).standard_normal(3000).astype(np.float32) if has_bias else None
    card, weight, features = make_many(tmp_path, bias=bias)
    names = [f"n{number}" for number in range(3000)]
    expected = expected_rows(features[:6], weight, bias, scale=1.0 if has_bias else 16.0, names=names)
    for least in (7, 1024, 5000):
        monkeypatch.setattr(module, "_LEAST_CHUNK", least)
        monkeypatch.setattr(module, "_SCORES", 1)
        found = Classifier(card.directory, card.classifier, emb_dim=EMB_DIM).classify(features[:6], 5)
        assert_close(found, expected, 5)


@pytest.mark.parametrize("least", [4, 1024])
def test_of_sub_centers_the_nearest_counts(tmp_path, monkeypatch, least):
    monkeypatch.setattr(module, "_LEAST_CHUNK", least)
    monkeypatch.setattr(module, "_SCORES", 1)
    weight = make_centers(24).reshape(8, 3, EMB_DIM)
    made, _ = make_classifier(tmp_path / "m", weight, names=NAMES)
    assert read_model_card(tmp_path / "m").classifier.subcenters == 3
    expected = expected_rows(features_of(made), weight, scale=16.0)
    assert_close(load_inference_model(tmp_path / "m").classify(IMAGES, 8), expected, 8)


def test_through_faiss(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    card, _, features = make_many(tmp_path)
    whole = Classifier(card.directory, card.classifier, emb_dim=EMB_DIM)
    assert whole.normalized_over == 3000
    monkeypatch.setattr(module, "NEAREST", 200)
    near = Classifier(card.directory, card.classifier, emb_dim=EMB_DIM, faiss_from=3000)
    assert near.normalized_over == 200
    for row, other in zip(near.classify(features, 5), whole.classify(features, 5)):
        assert [(each.number, each.score) for each in row] == [(each.number, each.score) for each in other]
        shares = [(each.probability, exact.probability) for each, exact in zip(row, other)]
        assert all(exact <= share < 1.5 * exact for share, exact in shares)  # the sum over the others is left out
    assert Classifier(card.directory, card.classifier, emb_dim=EMB_DIM, faiss_from=3001)._index is None


def test_without_faiss(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    card, *_ = make_many(tmp_path, 20)
    assert Classifier(card.directory, card.classifier, emb_dim=EMB_DIM, faiss_from=1).normalized_over == 20


# Sharing


def test_threads_classify_as_one_does(exported, stress_seconds):
    model = load_inference_model(exported[0])
    calls = [lambda image=image: scores_of(model.classify(image, 8)) for image in IMAGES]
    calls += [lambda: scores_of(model.classify(IMAGES, 3)), lambda: model.embed(IMAGES)]
    stress_threads(compared(lambda number: calls[number](), len(calls)), seconds=stress_seconds)


def scores_of(found):
    return np.array([[each.score for each in row] for row in found], np.float32)


def test_a_pickled_model_classifies(loaded):
    again = pickle.loads(pickle.dumps(loaded))
    assert [row[0].name for row in again.classify(IMAGES)] == [row[0].name for row in loaded.classify(IMAGES)]


def test_an_older_checkpoint_says_by_its_loss_how_it_scores(tmp_path):
    from plsc.engine.saved_centers import scores_of as kind_of

    saved = make_checkpoint(tmp_path / "a", make_centers())
    assert (kind_of(saved).is_cosine, kind_of(saved).scale) == (True, 16.0)
    saved.about.pop("scores")
    assert (kind_of(saved).is_cosine, kind_of(saved).scale) == (True, 16.0)
    saved = make_checkpoint(tmp_path / "b", make_centers(), np.zeros(8, np.float32))
    saved.about.pop("scores")
    assert (kind_of(saved).is_cosine, kind_of(saved).scale) == (False, 1.0)

"""The embedder: batches, mirror images, the mode of the backbone, mistakes; and predictions of a trained network."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import plsc
from plsc import ConfigError, DataError, VerificationSet
from plsc.cli.main import app
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.engine import evaluator
from plsc.engine.evaluator import Embedder, check_verification_sets, verify
from plsc.inference.embedding import EmbeddingPath
from plsc.metrics.verification import verification_report
from tests._support.exporting import EMB_DIM, IMAGES, SHAPE, eager, network
from tests._support.images import make_images
from tests._support.ranks import ThreadRanks
from tests._support.stress import compared, stress_threads

PATH = EmbeddingPath(image_shape=SHAPE, flip=True, pixel_mean=127.5, pixel_std=128.0)


def embedder(backbone, batch_size):
    return Embedder(backbone, PATH, emb_dim=EMB_DIM, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 120])
def test_images_and_their_mirror_images_are_summed_in_passes_of_the_batch_size(batch_size):
    net, pixels, sizes = network(), np.stack(IMAGES), []
    expected = eager(net, pixels) + eager(net, pixels[:, :, ::-1])
    net.register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])))
    assert np.abs(embedder(net, batch_size)(iter(IMAGES)) - expected).max() < 1e-4
    assert max(sizes) == min(batch_size, len(IMAGES)) and sum(sizes) == 2 * len(IMAGES)


def test_finished_images_and_pixels_in_one_batch():
    net = network()
    finished = PATH.normalize(PATH.prepare(IMAGES[0]))
    found = embedder(net, 4)([IMAGES[0], finished, IMAGES[1]])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_the_backbone_keeps_its_mode():
    net = network()
    for mode in (net.train, net.eval):
        mode()
        was = net.training
        found = embedder(net, 2)(IMAGES)
        assert net.training == was
    assert np.array_equal(found, embedder(net, 2)(IMAGES))


def test_no_images_and_unreadable_ones():
    net = network()
    assert embedder(net, 2)([]).shape == (0, EMB_DIM)
    with pytest.raises(DataError, match="image 3: 5 bytes that are no image"):
        embedder(net, 2)([*IMAGES[:3], b"hello"])


def test_embeddings_of_network_and_export_agree(entry, data_dir, tmp_path):
    entry.train()
    files = [data_dir / f"images/{index:08d}.png" for index in range(7)]
    predicted = entry.predict(files, save_to=tmp_path / "e.npy")
    exported = plsc.load_inference_model(entry.convert_for_prediction()).embed(files, batch_size=3)
    assert exported.shape == (7, 16)
    assert np.abs(exported - predicted).max() < 1e-5
    assert np.linalg.norm(predicted, axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    assert np.array_equal(np.load(tmp_path / "e.npy"), predicted)
    # Encoded bytes and pixels say the same; the folder above is found too.
    again = plsc.load_inference_model(entry.model_save_dir).embed(files[0].read_bytes())
    assert np.abs(again - exported[:1]).max() < 1e-5


def test_predict_reader_in_its_forms(entry):
    entry.train()
    images, _ = make_images()
    expected = entry.predict(list(images[:4]))
    for reader in (
        lambda: iter(images[:4]),
        lambda: ((image,) for image in images[:4]),
        lambda: iter([[(image, 0) for image in images[:4]]]),
    ):
        entry.predict_reader = reader
        assert np.array_equal(entry.predict(), expected)


def test_predict_takes_images_of_every_kind_and_a_single_one(entry, data_dir):
    entry.train()
    files = [data_dir / f"images/{index:08d}.png" for index in range(3)]
    expected = entry.predict(files)
    kinds = [str(files[0]), Image.open(files[1]), io.BytesIO(files[2].read_bytes())]
    assert np.array_equal(entry.predict(iter(kinds)), expected)
    assert np.abs(entry.predict(str(files[1])) - expected[1:2]).max() < 1e-6
    with pytest.raises(DataError, match=f"^{data_dir}: the image cannot be read: Is a directory; give the files"):
        entry.predict([files[0], data_dir])
    with pytest.raises(DataError, match="^image 1: got None"):
        entry.predict([files[0], None])
    with pytest.raises(DataError, match="got a set of images, expected them in an order"):
        entry.predict(set(files))


def test_predict_in_several_threads(entry, stress_seconds):
    entry.train()
    images, _ = make_images()
    work = compared(lambda number: entry.predict(list(images[number : number + 1 + number % 3])), 6)
    assert stress_threads(work, stress_seconds) > 3


def test_predict_says_what_is_missing_and_overwrites_nothing(entry, tmp_path, data_dir):
    entry.train()
    with pytest.raises(ConfigError, match="nothing to embed"):
        entry.predict()
    (tmp_path / "there.npy").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        entry.predict([data_dir / "images/00000000.png"], save_to=tmp_path / "there.npy")
    with pytest.raises(DataError, match="image cannot be read: No such file"):
        entry.predict(["/no/such.png"])


def make_pairs(count=6, name="mine"):
    images = [IMAGES[index % len(IMAGES)] for index in range(2 * count)]
    return VerificationSet(name, images, is_same=[index % 2 == 0 for index in range(count)])


class Lazy:
    """Images that are made when they are read, and counted."""

    def __init__(self, make, count):
        self.make, self.count, self.read = make, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return (self[place] for place in range(*index.indices(self.count)))
        self.read.append(index)
        return self.make(index)


def lazy_pairs(make, count=6):
    pairs = make_pairs(count)
    pairs.images = Lazy(make, 2 * count)
    return pairs


CONFIG = plsc.Config(image_shape=SHAPE, emb_dim=EMB_DIM)


def check(sets, collectives=None):
    check_verification_sets(CONFIG, sets, collectives=collectives or Collectives())


def test_each_image_is_decoded_once_and_ranks_share_the_work():
    pairs = lazy_pairs(lambda index: IMAGES[index % len(IMAGES)])
    check([pairs])
    assert pairs.images.read == list(range(12))
    pairs.images.read.clear()
    ranks = ThreadRanks(3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda rank: check([pairs], ranks[rank]), range(3)))
    assert sorted(pairs.images.read) == list(range(12))


def fail(index):
    raise FileNotFoundError(2, "No such file", f"{index}.png")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda index: b"hello" if index == 7 else IMAGES[0], "image 7: 5 bytes that are no image"),
        (lambda index: np.zeros([4, 4]) if index == 9 else IMAGES[0], r"image 9: got an array \[4, 4\] of float64"),
        (lambda index: fail(7) if index == 7 else IMAGES[0], r"\[Errno 2\] No such file: '7.png'"),
        (lambda index: IMAGES[0] if index else 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_with_its_set_on_every_rank(make, message):
    pairs = lazy_pairs(make)
    with pytest.raises(DataError, match=f"verification set mine: {message}"):
        check([make_pairs(), pairs])
    pairs.path = Path("data/mine.bin")
    ranks = ThreadRanks(2)
    with ThreadPoolExecutor(2) as pool:
        for checked in [pool.submit(check, [pairs], ranks[rank]) for rank in range(2)]:
            with pytest.raises(DataError, match=f"verification set data/mine.bin: rank [01]: {message}"):
                checked.result()


def test_a_set_that_gives_no_report_is_named():
    check([make_pairs(1)])  # which is warned of where it is opened
    pairs = make_pairs()
    pairs.folds = pairs.folds[:-1]
    with pytest.raises(
        DataError, match=r"verification set mine \(6 pairs\) cannot be verified: folds: got shape \[5\]"
    ):
        check([make_pairs(), pairs])


def test_decoding_that_takes_long_is_noted_once(caplog, monkeypatch):
    check([make_pairs()])
    assert "decoding" not in caplog.text
    monkeypatch.setattr(evaluator, "_NOTED_SECONDS", -1.0)
    check([make_pairs(), make_pairs(name="other")])
    assert caplog.text.count("decoding each image of the verification sets once before training: mine, image 1 of") == 1


def test_the_folds_of_a_set_are_those_of_its_metrics(entry, data_dir):
    """Whatever embeddings the network gives: a set of two described folds is judged over these two."""
    whole = VerificationSet.load(data_dir / "lfw.bin")
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    images = [whole.images[2 * pair + side] for pair in order for side in (0, 1)]
    folds, same = np.tile(np.repeat([0, 1], 5), 2), whole.is_same[order]
    pairs = VerificationSet("own", images, is_same=same, folds=folds)
    net, collectives = network(), Collectives(init_topology())
    found = verify(embedder(net, 8), pairs, collectives=collectives)
    rows = embedder(net, 8)(pairs.images)
    assert found == verification_report(rows, same, folds=folds)
    assert found.metrics() != verification_report(rows, same, folds=5).metrics()


def test_sets_that_give_no_accuracy_train_test_and_are_null_in_json(entry, data_dir, tmp_path, caplog):
    """One pair, or pairs of one kind: a warning at the start, null and not NaN in every file."""
    whole = VerificationSet.load(data_dir / "lfw.bin")
    VerificationSet("same", whole.images, is_same=[True] * 20).save(data_dir / "same.bin")
    VerificationSet("one", whole.images[:2], is_same=[False]).save(data_dir / "one.bin")
    entry.set_val_targets("lfw,same,one.bin")
    entry.train()
    assert "verification set same: no accuracy: found 20 same and 0 different pairs" in caplog.text
    assert "verification set one: no accuracy: found 0 same and 1 different pair" in caplog.text
    metrics = ["accuracy", "accuracy_std", "threshold", "auc"]
    arguments = ["test", "--model-save-dir", entry.model_save_dir, "--dataset-dir", data_dir]
    printed = CliRunner().invoke(
        app, [*map(str, arguments), "--val-targets", "lfw,same,one.bin"], catch_exceptions=False
    )
    lines = (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()
    for text in (printed.stdout[printed.stdout.index("{") :], lines[-1]):
        found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert 0 <= found["lfw/accuracy"] <= 1
        for name in ("same", "one"):
            assert [found[f"{name}/{metric}"] for metric in metrics] == [None] * 4
            assert found[f"{name}/xnorm"] > 0
    assert found["same/pairs"] == 20 and found["one/pairs"] == 1


def test_an_image_or_an_embedding_that_is_not_finite_is_named():
    bad = PATH.normalize(PATH.prepare(IMAGES[0]))
    bad[0, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"image 2: got an image of float32 that holds nan, expected finite numbers"):
        embedder(network(), 2)([*IMAGES[:2], bad])
    net = network()
    net.register_forward_post_hook(lambda layer, inputs, outputs: outputs / (len(inputs[0]) - 1.0))
    with pytest.raises(DataError, match=r"image 3: its embedding holds -?(inf|nan), expected finite numbers"):
        embedder(net, 3)(IMAGES)  # the last batch has one image

"""An exported model embeds images of every kind in order, and says which image it cannot read."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import shutil
import weakref

import cv2
import numpy as np
import pytest

from plsc import DataError, ServingError, load_inference_model
from plsc.data.images import decode
from plsc.inference.model import InferenceModel
from tests._support.images import damaged_jpeg
from tests._support.model_calls import IMAGES, every_call
from tests._support.scripts import run_script
from tests._support.servers import EMB_DIM, SIDE, make_model
from tests._support.stress import stress_threads


@pytest.fixture(scope="module")
def loaded(model):
    return load_inference_model(model)


def test_images_of_every_kind_and_batches_of_every_size(loaded, tmp_path):
    (tmp_path / "one.png").write_bytes(IMAGES[1])
    mixed = [IMAGES[0], str(tmp_path / "one.png"), tmp_path / "one.png", decode(IMAGES[2]), *IMAGES[3:]]
    expected = np.concatenate([loaded.embed(image) for image in (IMAGES[0], IMAGES[1], *IMAGES[1:])])
    assert expected.shape == (8, EMB_DIM) and expected.dtype == np.float32
    assert np.linalg.norm(expected, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    for batch_size in (1, 3, 32):
        assert np.abs(loaded.embed(mixed, batch_size) - expected).max() < 1e-5
    for batch_size in (np.int64(2), 10**30):
        assert np.abs(loaded.embed(mixed, batch_size) - expected).max() < 1e-5
    for none in ([], iter([])):
        assert loaded.embed(none).shape == (0, EMB_DIM)


def test_pixels_of_the_models_size(loaded):
    pixels = np.stack([decode(image).transpose(2, 0, 1) for image in IMAGES])
    assert np.abs(loaded.embed_pixels(pixels) - loaded.embed(IMAGES)).max() < 1e-5


def test_the_network_alone_gives_embeddings_of_any_length(loaded):
    assert loaded.card.flip
    rows = loaded.card.to_input(np.stack([loaded.card.prepare(image) for image in IMAGES]))
    outputs = loaded.run(rows)
    assert outputs.shape == (14, EMB_DIM)
    summed = outputs[:7] + outputs[7:]
    found = summed / np.linalg.norm(summed, axis=1, keepdims=True)
    assert np.abs(found - loaded.embed(IMAGES)).max() < 1e-5


def test_the_model_says_what_it_is(model):
    loaded = InferenceModel(model, threads=1)
    assert loaded.image_shape == (3, SIDE, SIDE) and loaded.emb_dim == EMB_DIM
    assert all(isinstance(name, str) and name for name in loaded.warm_up())
    assert repr(loaded) == f"InferenceModel({str(model)!r}): images {[3, SIDE, SIDE]} to [{EMB_DIM}]"


def test_images_that_cannot_be_read(loaded):
    with pytest.raises(DataError, match=r"image 5: 5 bytes that are no image"):
        loaded.embed([*IMAGES[:5], b"hello"], 2)
    with pytest.raises(DataError, match="/no/such.png: the image cannot be read: No such file"):
        loaded.embed("/no/such.png")
    with pytest.raises(DataError, match=r"^/tmp: the image cannot be read: Is a directory; give the files in it"):
        loaded.embed("/tmp")
    with pytest.raises(DataError, match=r"^image 0: got None, expected a path"):
        loaded.embed([None])
    with pytest.raises(DataError, match=r"image 0: got an array \[2, 2, 3\] of float64"):
        loaded.embed(np.zeros([2, 2, 3]))
    for batch_size in (0, -3, 2.0, "2", None, True):
        with pytest.raises(ServingError, match=f"got batch_size {batch_size!r}, expected 1 or more"):
            loaded.embed(IMAGES, batch_size)


def test_a_damaged_image_is_embedded_with_a_warning_that_names_it(loaded, tmp_path, caplog):
    (tmp_path / "one.jpg").write_bytes(damaged_jpeg())
    loaded.embed([IMAGES[0], tmp_path / "one.jpg", damaged_jpeg()])
    assert [line.split(": damaged")[0] for line in caplog.messages] == [str(tmp_path / "one.jpg"), "image 2"]


def test_no_exported_model(tmp_path):
    with pytest.raises(ServingError, match=r"plsc_model\.json is missing.*convert_for_prediction"):
        load_inference_model(tmp_path)
    with pytest.raises(ServingError, match="^got NoneType 'None', expected the folder of an exported model"):
        load_inference_model(None)


def test_an_image_and_normalized_images_in_one_batch(loaded):
    pixels = decode(IMAGES[0])
    finished = [loaded.card.normalize(loaded.card.prepare(image)) for image in IMAGES[:3]]
    expected = loaded.embed(IMAGES[:3])
    assert np.abs(loaded.embed([pixels, *finished[1:]]) - expected).max() < 1e-5
    assert np.abs(loaded.embed([finished[0], pixels, IMAGES[2]]) - expected[[0, 0, 2]]).max() < 1e-5
    assert np.abs(loaded.embed(np.stack(finished)) - expected).max() < 1e-5


@pytest.fixture(scope="module")
def pixels_model(tmp_path_factory):
    """A model that normalizes by itself."""
    folder = tmp_path_factory.mktemp("pixels") / "m"
    make_model(folder, bake=("preprocess",))
    return load_inference_model(folder)


def test_a_normalized_image_for_a_model_that_normalizes_by_itself_is_refused(pixels_model):
    finished = np.zeros([3, SIDE, SIDE], np.float32)
    for images in ([finished], [IMAGES[0], finished]):
        place = len(images) - 1
        with pytest.raises(DataError, match=rf"image {place}: got a finished image .* float32, expected pixels"):
            pixels_model.embed(images)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_normalized_image_that_is_not_finite_is_refused(loaded, number):
    finished = np.zeros([3, SIDE, SIDE], np.float32)
    finished[2, 1, 1] = number
    with pytest.raises(DataError, match=f"image 2: got an image of float32 that holds {number:g}"):
        loaded.embed([*IMAGES[:2], finished])


def test_an_embedding_that_is_not_finite_is_refused(loaded, monkeypatch):
    run = loaded._predictor.run
    monkeypatch.setattr(loaded._predictor, "run", lambda batch: run(batch) * (np.inf if len(batch) == 2 else 1))
    with pytest.raises(DataError, match="image 4: its embedding holds nan, expected finite numbers"):
        loaded.embed(IMAGES[:5], 2)


def test_input_of_the_network_that_it_does_not_take_is_refused(loaded, pixels_model):
    pixels = np.zeros([2, 3, SIDE, SIDE], np.uint8)
    ragged = [pixels[0], pixels[0, :2]]
    for wrong in (pixels.astype(np.float32), pixels.transpose(0, 2, 3, 1), pixels[0], pixels[..., :8], ragged, None):
        with pytest.raises(DataError, match=r"embed_pixels: got \[.*expected \[N, 3, 16, 16\] of uint8"):
            loaded.embed_pixels(wrong)
    for wrong in (pixels, pixels.astype(np.float32)[..., :8], np.zeros([3, SIDE, SIDE], np.float32), ragged, None):
        with pytest.raises(DataError, match=r"run: got \[.*expected \[N, 3, 16, 16\] of float32"):
            loaded.run(wrong)
    for wrong in (pixels, np.zeros([2, 9, 9, 3], np.float32), np.zeros([2, 0, 9, 3], np.uint8)):
        with pytest.raises(DataError, match=r"run: got \[.*expected \[N, any, any, 3\] of uint8"):
            pixels_model.run(wrong)
    assert np.array_equal(loaded.run(pixels.astype(np.float64)), loaded.run(pixels.astype(np.float32)))
    assert loaded.embed_pixels(pixels[:0]).shape == loaded.run(np.zeros([0, 3, SIDE, SIDE])).shape == (0, EMB_DIM)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300])
def test_input_of_the_network_that_is_not_finite_is_refused(loaded, number):
    batch = np.zeros([3, 3, SIDE, SIDE])
    batch[1, 2, 0, 0] = number
    with pytest.raises(DataError, match="run: image 1 holds .*, expected finite numbers"):
        loaded.run(batch)


def test_images_of_a_generator_are_read_batch_by_batch(loaded):
    alive, most = weakref.WeakValueDictionary(), 0

    class Image(np.ndarray):
        """Pixels that a weak reference can be made to."""

    def images():
        nonlocal most
        for number, image in enumerate(IMAGES * 10):
            made = decode(image).view(Image)
            alive[number] = made
            most = max(most, len(alive))
            yield made

    assert np.abs(loaded.embed(images(), 4) - np.concatenate([loaded.embed(IMAGES)] * 10)).max() < 1e-5
    assert most <= 8


def test_an_image_of_many_pixels_or_of_a_single_one(loaded):
    row = np.random.default_rng(0).integers(0, 256, (1, 70_000, 3), np.uint8)
    square = np.broadcast_to(decode(IMAGES[0])[:1, :1], (9_000, 9_000, 3))
    for image in (row, row.transpose(1, 0, 2), cv2.imencode(".png", row)[1].tobytes(), row[:, :1], square):
        (found,) = loaded.embed(image)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_models_and_images_in_a_folder_whose_name_is_no_utf8(model, tmp_path):
    folder = tmp_path / os.fsdecode("模型".encode("gbk"))
    shutil.copytree(model, folder / "m")
    (folder / os.fsdecode("照片.png".encode("gbk"))).write_bytes(IMAGES[0])
    loaded = load_inference_model(folder / "m")
    images = sorted(folder.glob("*.png"))
    assert np.array_equal(loaded.embed(images), load_inference_model(model).embed(IMAGES[0]))
    (folder / "m" / "model.pdiparams").write_bytes(b"damaged")
    with pytest.raises(ServingError, match="cannot load it"):
        load_inference_model(folder / "m")
    (folder / "m" / "model.pdiparams").unlink()
    with pytest.raises(ServingError, match="model.pdiparams is missing"):
        load_inference_model(folder / "m")


@pytest.mark.parametrize("threads", [0, -1, 2.0, "2", True])
def test_a_number_of_threads_that_is_none(model, threads):
    with pytest.raises(ServingError, match="threads, expected 1 or more, as a whole number"):
        InferenceModel(model, threads)


def test_one_model_in_several_threads(model, stress_seconds):
    assert stress_threads(every_call(load_inference_model(model)), stress_seconds) > 20


def test_one_model_in_forked_processes(model, stress_seconds):
    done = run_script(
        f"""
        from plsc import load_inference_model
        from tests._support.model_calls import every_call
        from tests._support.stress import stress_processes

        assert stress_processes(every_call(load_inference_model({str(model)!r})), {stress_seconds}) > 20
        """,
        stress_seconds + 120,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_forks_of_a_process_whose_threads_have_used_models(model):
    """In a process of its own, since other tests use models in threads."""
    done = run_script(
        f"""
        import multiprocessing, os, threading, time
        import numpy as np
        import plsc
        from tests._support.model_calls import IMAGES

        def in_a_fork(call):
            receiver, sender = context.Pipe(duplex=False)
            def run():
                try:
                    sender.send(call())
                except plsc.ServingError as error:
                    sender.send(str(error))
            process = context.Process(target=run)
            process.start()
            sender.close()
            assert receiver.poll(30), "hangs"
            return receiver.recv()

        context = multiprocessing.get_context("fork")
        model = plsc.load_inference_model({str(model)!r})
        expected = model.embed(IMAGES).tolist()
        embed = lambda: model.embed(IMAGES).tolist()

        # A fork waits for the pass of a thread: the child has no lock that nobody releases.
        is_held = threading.Event()
        def hold():
            with model._predictor._lock:
                is_held.set()
                time.sleep(0.3)
        threading.Thread(target=hold).start()
        assert is_held.wait(30)
        assert in_a_fork(embed) == expected
        assert embed() == expected

        model._predictor._gpu = 0  # as on a GPU
        assert f"fork of process {{os.getpid()}}, where Paddle was used on a GPU" in in_a_fork(embed)
        model._predictor._gpu = None

        thread = threading.Thread(target=embed)
        thread.start()
        thread.join()
        load = lambda: plsc.load_inference_model({str(model)!r}).emb_dim
        for call in (embed, load):
            said = in_a_fork(call)
            assert f"fork of process {{os.getpid()}}, where Paddle was used by several threads" in said, said
            assert "start this process by multiprocessing's 'spawn'" in said
        assert embed() == expected and load()
        """
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_pickles_and_copies(model, tmp_path, monkeypatch):
    shutil.copytree(model, tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    loaded = InferenceModel("m", threads=2)
    data = pickle.dumps(loaded)
    monkeypatch.chdir("/")
    assert np.array_equal(pickle.loads(data).embed(IMAGES), loaded.embed(IMAGES))
    assert copy.copy(loaded) is copy.deepcopy(loaded) is loaded
    make_model(tmp_path / "other", seed=1)
    shutil.rmtree(tmp_path / "m")
    (tmp_path / "other").rename(tmp_path / "m")
    with pytest.raises(ServingError, match="another model has been exported there since the pickle was made"):
        pickle.loads(data)


def test_a_model_in_asyncio(loaded):
    async def embed_all():
        return await asyncio.gather(*(asyncio.to_thread(loaded.embed, image) for image in IMAGES * 5))

    expected = np.concatenate([loaded.embed(image) for image in IMAGES] * 5)
    assert np.abs(np.concatenate(asyncio.run(embed_all())) - expected).max() < 1e-5

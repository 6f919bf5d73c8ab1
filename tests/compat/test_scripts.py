"""Scripts and readers of PLSC 0.x."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from plsc import Entry
from plsc.data.convert.conversion import convert
from plsc.data.sources import open_records
from plsc.utils import jpeg_reader
from tests._support.images import CLASSES
from tests._support.ranks import run
from tests._support.scripts import INTRODUCTION, SMALL

READER = """import paddle
    import plsc.compat.jpeg_reader
    from plsc.utils import jpeg_reader
    plsc.compat.jpeg_reader._IMAGE_SHAPE = (3, 16, 16)
    ins.train_reader = paddle.batch(jpeg_reader.arc_train("./train_data", class_dim={classes}), {batch})"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.ranks)])
@pytest.mark.parametrize("reader", ["", READER])
def test_the_script_of_the_introduction_trains_on_a_folder(ranks, reader, data_dir, tmp_path):
    data_dir.rename(tmp_path / "train_data")
    batch = 10 // ranks
    extra = SMALL.format(batch=batch) + "\n    " + reader.format(classes=CLASSES, batch=batch)
    script = tmp_path / "train.py"
    script.write_text(INTRODUCTION.format(classes=CLASSES, extra=extra))
    command = [sys.executable, str(script)]
    if ranks > 1:
        command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", ranks, "--log_dir", "log"]
        command.append("train.py")
    _, output = run(command, cwd=tmp_path)
    assert "lfw: accuracy" in output
    assert (tmp_path / "output" / "0" / "manifest.json").is_file()


def test_the_jpeg_readers_yield_normalized_images(data_dir, monkeypatch):
    monkeypatch.setattr("plsc.compat.jpeg_reader._IMAGE_SHAPE", (3, 16, 16))
    samples = list(jpeg_reader.arc_train(str(data_dir), CLASSES)())
    assert len(samples) == 30
    assert samples[0][0].shape == (3, 16, 16) and -1 <= samples[0][0].min() < samples[0][0].max() <= 1
    sets = jpeg_reader.test(str(data_dir), "lfw")()
    entry = Entry()
    entry.test_reader = lambda: sets
    assert [pairs.name for pairs in sets] == ["lfw"]


def test_the_base64_reader_yields_every_image_normalized(data_dir, tmp_path):
    from plsc.data.images import decode, resize
    from plsc.data.transforms import normalize
    from plsc.utils import base64_reader

    source = open_records(data_dir)
    convert(source, tmp_path / "text", to="base64", parts=3)
    reader = base64_reader.train(str(tmp_path / "text"), "file_list.txt", 6)
    samples = list(reader())
    assert sorted(label for _, label in samples) == sorted(source.labels.tolist())
    wanted = [normalize(resize(decode(source[n].image), (112, 112)).transpose(2, 0, 1)) for n in range(len(source))]
    for image, label in samples[:5]:
        assert (image.shape, image.dtype) == ((3, 112, 112), np.float32)
        assert any(
            label == source.labels[n]
            and (np.array_equal(image, wanted[n]) or np.array_equal(image[..., ::-1], wanted[n]))
            for n in range(30)
        )
    made = base64_reader.test(str(data_dir), "lfw")()
    assert [each.name for each in made] == ["lfw"]

"""The model card is read from a folder or its parent, whatever wrote it, and damage is reported."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from plsc import ServingError
from plsc.inference.model_card import ABOUT_FILE, read_model_card

# A card as PLSC 1.0 wrote it, without what later versions add.
ABOUT = {
    "format": "plsc-inference-model",
    "version": 1,
    "image_shape": [3, 16, 16],
    "emb_dim": 8,
    "channels": "RGB",
    "pixel_mean": [127.5, 127.5, 127.5],
    "pixel_std": [128.0, 128.0, 128.0],
    "flip": True,
}


def write(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT_FILE).write_text(json.dumps({**ABOUT, **changes}))
    return folder


def test_a_card_without_later_keys(tmp_path):
    card = read_model_card(write(tmp_path / "m"))
    assert (card.image_shape, card.emb_dim, card.flip) == ((3, 16, 16), 8, True)
    assert not (card.takes_pixels or card.gives_unit or card.bgr or card.plain_kernels or card.weights)
    assert card.model_file == tmp_path / "m" / "model.json"
    assert card.input_dtype == np.float32 and card.input_shape == (3, 16, 16)


def test_a_card_with_everything_baked_in(tmp_path):
    baked = {"preprocess": True, "normalise": True, "channels": "BGR"}
    card = read_model_card(write(tmp_path / "m", baked=baked, weights="abc", plain_kernels=True))
    assert card.takes_pixels and card.gives_unit and card.bgr and card.plain_kernels and card.weights == "abc"
    assert card.input_dtype == np.uint8 and card.input_shape == (-1, -1, 3)


def test_the_folder_that_holds_inference_model_is_accepted(tmp_path):
    write(tmp_path / "output" / "inference_model")
    assert read_model_card(tmp_path / "output").directory == tmp_path / "output" / "inference_model"


def test_an_export_whose_replacement_was_killed_is_found(tmp_path):
    for given, folder in ((tmp_path / "m", tmp_path / "m"), (tmp_path, tmp_path / "inference_model")):
        write(folder).rename(folder.with_name(f".{folder.name}.plsc-old"))  # killed between the two changes of name
        assert read_model_card(given).directory == folder and folder.is_dir()


def test_the_fingerprint_does_not_depend_on_the_folder_or_its_spelling(tmp_path, monkeypatch):
    folder = write(tmp_path / "m", weights="abc")
    shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    same = [folder, "m", f"m{os.sep}", os.path.join("..", tmp_path.name, "m"), tmp_path / "copy"]
    assert len({read_model_card(path).fingerprint for path in same}) == 1
    other = write(tmp_path / "other", weights="def")
    assert read_model_card(other).fingerprint != read_model_card(folder).fingerprint


@pytest.mark.parametrize(
    "text, message",
    [
        (None, r"no exported model there \(plsc_model\.json is missing\); make one with convert_for_prediction"),
        ("{", "cannot be read"),
        ("[]", r"found '\[\]', expected format 'plsc-inference-model' version 1"),
        (json.dumps({**ABOUT, "version": 2}), "expected format 'plsc-inference-model' version 1"),
        (json.dumps({**ABOUT, "image_shape": 3}), "damaged .*; export the model again"),
        (json.dumps({**ABOUT, "baked": 3}), "damaged .*; export the model again"),
        (json.dumps({key: value for key, value in ABOUT.items() if key != "flip"}), r"damaged \(KeyError\('flip'\)\)"),
    ],
)
def test_damaged_cards(tmp_path, text, message):
    if text is not None:
        (tmp_path / ABOUT_FILE).write_text(text)
    with pytest.raises(ServingError, match=message):
        read_model_card(tmp_path)

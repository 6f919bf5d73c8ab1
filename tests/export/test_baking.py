"""Baked networks take pixels and return embeddings of unit length, equal to those of the plain export."""

from __future__ import annotations

import json

import numpy as np
import pytest

from plsc import ExportError, load_inference_model
from plsc.export.baking import parse_bake
from plsc.export.export import export_backbone
from plsc.inference.model_card import ABOUT_FILE, read_model_card
from plsc.inference.predictor import Predictor
from tests._support.exporting import IMAGES, eager, network, settings, unit


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("bgr", [True, False])
def test_baked_networks_take_pixels_and_give_unit_embeddings(tmp_path, flip, bgr):
    net, pixels = network(), np.stack(IMAGES)
    statistics = {"mean": (100, 110, 120), "std": (60, 55, 50)}
    config = settings(flip=flip, pixel_mean=statistics["mean"], pixel_std=statistics["std"])
    export_backbone(
        net,
        config,
        directory=tmp_path / "m",
        formats=("legacy",),
        bake=("normalize", "preprocess"),
        bgr=bgr,
        images=IMAGES,
    )
    both = eager(net, pixels, **statistics) + (eager(net, pixels[:, :, ::-1], **statistics) if flip else 0)
    given = pixels[..., ::-1] if bgr else pixels
    for path in ("model.json", "legacy/model.pdmodel"):
        assert np.abs(Predictor(tmp_path / "m" / path).run(given) - unit(both)).max() < 1e-5
    assert np.abs(load_inference_model(tmp_path / "m").embed(IMAGES) - unit(both)).max() < 1e-5


@pytest.mark.parametrize("bake", [("normalize",), ("preprocess",)])
def test_what_is_baked_changes_no_embedding(tmp_path, bake):
    net = network()
    config = settings(pixel_mean=(100, 110, 120), pixel_std=(60, 55, 50))
    export_backbone(net, config, directory=tmp_path / "plain", images=IMAGES)
    export_backbone(net, config, directory=tmp_path / "baked", bake=bake, images=IMAGES)
    plain, baked = (load_inference_model(tmp_path / name).embed(IMAGES) for name in ("plain", "baked"))
    assert np.abs(plain - baked).max() < 1e-5


def test_parts_are_put_in_order_and_the_spelling_of_plsc_1_is_accepted(tmp_path):
    assert parse_bake(["normalise", "preprocess"]) == ("preprocess", "normalize")
    assert parse_bake([]) == ()
    with pytest.raises(ExportError, match="bake: got 'resize', expected any of preprocess, normalize"):
        parse_bake(["normalize", "resize"])
    export_backbone(network(), settings(), directory=tmp_path / "m", bake=("normalise",), images=IMAGES)
    assert read_model_card(tmp_path / "m").gives_unit
    assert json.loads((tmp_path / "m" / ABOUT_FILE).read_text())["baked"]["normalise"] is True

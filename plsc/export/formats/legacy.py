"""The format 'legacy': the representation of Paddle 2, `.pdmodel` and `.pdiparams`."""

from __future__ import annotations

from pathlib import Path

import paddle

from plsc.export.checking import Run
from plsc.export.tracing import save_traced
from plsc.inference.model_card import MODEL_PREFIX
from plsc.inference.predictor import Predictor


def write_legacy(network: paddle.nn.Layer, spec: paddle.static.InputSpec, *, folder: Path) -> Run:
    """Write FOLDER/legacy. It has weights of its own, because the two representations name them differently."""
    legacy = folder / "legacy"
    legacy.mkdir()
    save_traced(network, spec, prefix=legacy / MODEL_PREFIX, legacy=True)
    return Predictor(legacy / f"{MODEL_PREFIX}.pdmodel", plain=True).run

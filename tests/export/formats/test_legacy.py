"""The format 'legacy': what its predictor cannot run is an error of PLSC."""

from __future__ import annotations

import pytest
from paddle import nn

from plsc import ExportError
from plsc.export.export import export_backbone
from tests._support.exporting import IMAGES, settings


def test_an_operator_that_the_legacy_predictor_does_not_know(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.RReLU())
    with pytest.raises(ExportError, match="format 'legacy' cannot be run on random images: .*rrelu"):
        export_backbone(net, settings(), directory=tmp_path / "m", formats=("legacy",), images=IMAGES)

"""Exported models that cannot be loaded."""

from __future__ import annotations

import pytest

from plsc import ServingError, load_inference_model


def test_no_exported_model(tmp_path):
    with pytest.raises(ServingError, match=r"plsc_model\.json is missing.*convert_for_prediction"):
        load_inference_model(tmp_path)

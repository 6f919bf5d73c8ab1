"""`FaceService` of PLSC 0.1."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests._support.servers import free_port, make_image, serving

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from face_service import FaceService
from plsc import DataError, ServingError, load_inference_model

pytestmark = pytest.mark.server
IMAGES = [make_image(seed) for seed in range(10)]


@pytest.mark.slow
def test_face_service_has_its_four_methods(model, tmp_path):
    expected = load_inference_model(model).embed(IMAGES)
    with serving(model, log=tmp_path / "log") as server:
        service = FaceService()
        with pytest.raises(ServingError, match=r"not connected; call connect"):
            service.encode([])
        service.connect(f"127.0.0.1:{server.port}")
        service.connect_all_server([f"127.0.0.1:{server.port}"])
        found = service.encode([base64.b64encode(image).decode() for image in IMAGES])
        assert np.abs(np.asarray(found) - expected).max() < 1e-5
        with pytest.raises(DataError, match="image 0: no base64"):
            service.encode(["a$"])
        with pytest.raises(ServingError, match="no server ready there"):
            service.connect(f"127.0.0.1:{free_port()}")
        service.close()
        service.close()

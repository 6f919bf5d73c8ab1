"""Import path of PLSC 0.1. New code uses `plsc.serving.Client`."""

from plsc.compat.face_service import FaceService

__all__ = ["FaceService"]

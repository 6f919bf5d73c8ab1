"""The import path of PLSC 0.1's client. New code: `plsc.serving.Client`."""

from face_service.face_service import FaceService

__all__ = ["FaceService"]

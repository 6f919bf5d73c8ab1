"""Import path of PLSC 0.1. The class is defined in plsc/compat/face_service.py; new code uses `plsc.serving.Client`."""

from plsc.compat.face_service import FaceService

__all__ = ["FaceService"]

"""Small verification sets, as `.bin` files hold them."""

from __future__ import annotations

import pickle

import cv2
import numpy as np


def encoded(value):
    return cv2.imencode(".png", np.full([4, 4, 3], value, np.uint8))[1].tobytes()


IMAGES, SAME = [encoded(value) for value in range(6)], [True, False, True]
AS_ARRAYS = [np.frombuffer(image, np.uint8) for image in IMAGES]


def write_bin(tmp_path, content, protocol=None):
    path = tmp_path / "lfw.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path

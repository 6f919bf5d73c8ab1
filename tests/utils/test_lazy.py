"""Packages that are not installed."""

from __future__ import annotations

import sys

from tests._support.ranks import run


def test_the_first_use_without_paddle_says_what_to_install():
    code = "import sys; sys.modules['paddle'] = None; import plsc; plsc.Entry().train()"
    status, output = run([sys.executable, "-c", code], check=False)
    assert status != 0
    assert "PLSC needs paddle, which is not installed: pip install paddlepaddle (or paddlepaddle-gpu" in output

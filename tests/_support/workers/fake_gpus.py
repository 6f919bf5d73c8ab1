"""`fake_gpus.py COUNT FLAG... SCRIPT`: the launcher of `plsc launch` where Paddle finds so many GPUs.

Only the launcher believes so: its ranks are processes of their own.
"""

from __future__ import annotations

import runpy
import sys

from paddle.base import core

count = int(sys.argv.pop(1))
core.is_compiled_with_cuda = lambda: count > 0
core.get_cuda_device_count = lambda: count
runpy.run_module("plsc.distributed.launching.paddle_launcher", run_name="__main__", alter_sys=True)

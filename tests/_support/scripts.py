"""Training scripts as users write them, with places to fill in, and scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

INTRODUCTION = """
from plsc import Entry

if __name__ == "__main__":
    ins = Entry()
    ins.set_class_num({classes})
    {extra}
    ins.train()
"""

SMALL = """ins.set_image_shape((3, 16, 16)); ins.set_model_name("ResNetTiny"); ins.set_emb_size(16)
    ins.set_train_batch_size({batch}); ins.set_train_epochs(1)"""


def run_script(text, seconds=900):
    """Run Python in a process of its own, from the root of the repository; returns what `subprocess.run` does.

    Args:
        text: the script, which may be indented.
        seconds: until it is killed.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        timeout=seconds,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )

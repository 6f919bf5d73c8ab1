"""The training of train_worker.py, whose rank 0 is killed in the middle of an update of the class centers.

Arguments: the settings of train_worker.py as JSON; the number of the update, from 1, or 0 for none.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

from plsc.losses import shard

KILLED = int(sys.argv.pop(2))
shard.BLOCK_ROWS["cpu"] = 2  # so that an update has several blocks
update = shard.Shard.update


def stop_in_the_middle(self, gradients, *, learning_rate):
    def some():
        for number, pair in enumerate(gradients):
            if number == 1 and self.step == KILLED and os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
                print("KILLED", self.step, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            yield pair

    update(self, some(), learning_rate=learning_rate)


shard.Shard.update = stop_in_the_middle
runpy.run_path(str(Path(__file__).with_name("train_worker.py")), run_name="__main__")

"""Training on ranks that ends as told, and a line with how it ends on this rank: ENDS <rank> <class>.

Arguments: a folder, the way, the rank that causes it. "signal": a signal at the start, to that rank alone. "disk": its
checkpoints cannot be written.
"""

import os
import signal
import sys
from pathlib import Path

import plsc
from plsc.distributed.topology import place_from_environment
from plsc.engine import saver, trainer
from tests._support.images import CLASSES, SIDE, make_images

FOLDER, WAY, ITS_RANK = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
RANK = place_from_environment()[0]


class Pixels:
    num_classes = CLASSES

    def __init__(self):
        self.images, self.labels = make_images()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


def fail(*arguments, **options):
    raise OSError(28, "No space left on device")


check = trainer.check_verification_sets


def signal_and_check(*arguments, **options):
    os.kill(os.getpid(), signal.SIGUSR1)
    return check(*arguments, **options)


if RANK == ITS_RANK and WAY == "disk":
    saver.write_parts = fail
if RANK == ITS_RANK and WAY == "signal":
    trainer.check_verification_sets = signal_and_check
saver.LAST_PAUSES = (0.1,)
entry = plsc.Entry()
entry.train_dataset = Pixels()
entry.set_class_num(CLASSES)
entry.set_image_shape((3, SIDE, SIDE))
entry.set_model_name("ResNetTiny")
entry.set_emb_size(16)
entry.set_train_batch_size(5)
entry.set_train_epochs(1)
entry.set_num_workers(0)
entry.set_with_test(False)
entry.set_model_save_dir(FOLDER / "output")
try:
    entry.train()
except BaseException as error:
    print("ENDS", RANK, type(error).__name__, flush=True)
    raise

"""Runs in which one rank finds a fault that the others cannot see: each rank prints the error that it raised.

Argument: a folder for the files of the runs. Lines: FAILED <name of the run> <rank> <class>: <message>.
"""

import os
import resource
import sys
from pathlib import Path

import numpy as np
import paddle

import plsc
from plsc.checkpoint import reader, writer
from plsc.data.verification_set import VerificationSet
from plsc.distributed.topology import init_topology
from plsc.engine import saver

ROOT = Path(sys.argv[1])
TOPOLOGY = init_topology()
IS_LAST = TOPOLOGY.rank == TOPOLOGY.world_size - 1
CLASSES, SIDE = 64, 8
saver.LAST_PAUSES = (0.1,)  # in place of half an hour


class Pixels:
    num_classes = CLASSES

    def __init__(self):
        self.images = np.random.default_rng(1).integers(0, 255, (8, SIDE, SIDE, 3)).astype(np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index


def make_pairs(name="pixels", count=4):
    images = Pixels().images
    return VerificationSet(name, [images[i % 8] for i in range(2 * count)], is_same=[i % 2 == 0 for i in range(count)])


def make_entry(folder, **settings):
    made = plsc.Entry()
    made.set_model_name("ResNetTiny")
    made.set_image_shape((3, SIDE, SIDE))
    made.set_emb_size(512)
    made.set_class_num(CLASSES)
    made.set_train_batch_size(4)
    made.set_train_epochs(1)
    made.set_num_workers(0)
    made.set_with_test(False)
    made.set_model_save_dir(ROOT / folder)
    made.train_dataset = Pixels()
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def report(name, run):
    try:
        run()
    except BaseException as error:
        print(f"FAILED {name} {TOPOLOGY.rank} {type(error).__name__}: {error}", flush=True)
    else:
        print(f"FINISHED {name} {TOPOLOGY.rank}", flush=True)


def damaged_image():
    pairs = make_pairs()
    pairs.images[7] = b"no image"  # in the share of the last rank
    make_entry("image", with_test=True, test_dataset=pairs).train()


def other_sets():
    def reader():
        return [make_pairs("one"), make_pairs("two")] if IS_LAST else [make_pairs("one")]

    make_entry("sets", with_test=True, test_reader=reader).train()


def failing_reader():
    def reader():
        if IS_LAST:
            raise KeyError("pairs")
        return make_pairs()

    make_entry("reader", with_test=True, test_reader=reader).train()


def unshared_folder():
    """The same name on every rank, in folders of their own, as on machines that share no disk."""
    folder = ROOT / ("unshared" if IS_LAST else "shared")
    folder.mkdir()
    os.chdir(folder)
    make_entry("", model_save_dir="output").train()


def failing_schedule():
    learning_rates = [0.1, 0.1] if IS_LAST else [0.1, 0.1, 0.1]
    make_entry("schedule", lr_schedule=lambda step: learning_rates[step], train_epochs=3).train()


def full_disk():
    """The files of the last rank may not grow beyond 64 KiB: its class centers take 64 KiB, and their header."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if IS_LAST:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        make_entry("full").train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def failing_part():
    """Something else than an error of the file system, in what only one rank does."""
    real = writer._checked_blocks

    def checked_blocks(part, size):
        if IS_LAST and part.rows == CLASSES:
            raise ZeroDivisionError("of a rank")
        return real(part, size)

    writer._checked_blocks = checked_blocks
    try:
        make_entry("part").train()
    finally:
        writer._checked_blocks = real


def resume(folder):
    return lambda: make_entry("resumed", checkpoint_dir=str(ROOT / folder), train_epochs=2).train()


def other_checkpoint():
    """The newest checkpoint that the last rank finds is an older one."""
    real = reader.list_checkpoints
    reader.list_checkpoints = lambda root: real(root)[:-1] if IS_LAST else real(root)
    try:
        resume("two")()
    finally:
        reader.list_checkpoints = real


def failing_test():
    where = ROOT / ("none" if IS_LAST else "two")
    make_entry("tested", test_dataset=make_pairs(), checkpoint_dir=str(where)).test()


def failing_export():
    make_entry("exported", checkpoint_dir=str(ROOT / "none")).convert_for_prediction(ROOT / "model")


def damage_last_shard():
    """The first bytes of the class centers that only the last rank reads."""
    if IS_LAST:
        with open(sorted((ROOT / "damaged" / "0").glob("classes-*"))[-1], "r+b") as file:
            file.write(bytes(64))
    paddle.distributed.barrier()


for run in (damaged_image, other_sets, failing_reader, unshared_folder, failing_schedule, full_disk, failing_part):
    report(run.__name__, run)
report("two", make_entry("two", train_epochs=2).train)
report("damaged", make_entry("damaged").train)
damage_last_shard()
report("damaged_shard", resume("damaged"))
for run in (other_checkpoint, failing_test, failing_export):
    report(run.__name__, run)

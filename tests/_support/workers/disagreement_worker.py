"""Make trainers whose ranks differ in one thing each, and print how each rank failed.

Arguments: a folder with data/label.txt and a copy of it in copy/.
"""

import json
import sys
from pathlib import Path

import numpy as np

import plsc
from plsc.checkpoint import Checkpoint
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.losses.margins.combined import CombinedMargin
from plsc.models.tiny import ResNetTiny

folder = Path(sys.argv[1])
topology = init_topology()
rank = topology.rank


def entry(**settings):
    made = plsc.Entry()
    base = {
        "dataset_dir": str(folder / "data"),
        "num_classes": 7,
        "image_shape": (3, 16, 16),
        "model_name": "ResNetTiny",
        "emb_dim": 16,
        "train_batch_size": 5,
        "train_epochs": 1,
        "num_workers": 0,
        "with_test": False,
        "model_save_dir": str(folder / "output"),
    }
    for name, value in {**base, **settings}.items():
        setattr(made, name, value)
    return made


def slow(step):
    return 0.1


def fast(step):
    return 0.2


def constant(value):
    return lambda step: value


def broken_on_one_rank():
    for step in range(4):
        yield [(np.zeros((3, 16, 16), np.float32), step // (1 - rank))] * 5


def one_image_less(batch=5):
    return lambda: iter([[(np.zeros((3, 16, 16), np.float32), 0)] * batch] * (4 - rank))


def report(case, run):
    error = None
    try:
        run()
    except Exception as raised:
        error = raised
    print("CASE", json.dumps([case, type(error).__name__, str(error)]), flush=True)
    Collectives(topology).barrier()


def trainer(**settings):
    return lambda: plsc.Trainer(entry(**settings).config)


def differ(one, other):
    return other if rank else one


# Settings, and what follows from them.
report("num_classes", trainer(num_classes=differ(41, 45)))
report("seed", trainer(seed=rank))
report("lr", trainer(lr=differ(0.1, 0.2)))
report("loss_type", trainer(loss_type=differ("dist_arcface", "dist_cosface")))
report("emb_dim", trainer(emb_dim=differ(16, 8)))
report("train_batch_size", trainer(train_batch_size=differ(5, 6)))
report("train_epochs", trainer(train_epochs=1 + rank))
report("test_period", trainer(test_period=rank))
report("log_period", trainer(log_period=1 + rank))
report("model_parallel", trainer(model_parallel=bool(rank)))
report("with_test", trainer(with_test=bool(rank)))
report("model_save_dir", trainer(model_save_dir=str(folder / f"output{rank}")))
report("lr_schedule", trainer(lr_schedule=differ(slow, fast)))
report("learning rate", trainer(lr_schedule=constant(differ(0.1, 0.2))))
report("margin_function", trainer(margin_function=CombinedMargin(1.0, differ(0.5, 0.3), 0.0)))
report("network", trainer(model=ResNetTiny(emb_dim=16, image_shape=(3, differ(16, 32), 16))))
report("images", trainer(dataset_dir=str(folder / differ("data", "fewer"))))
report("classes", trainer(dataset_dir=str(folder / differ("data", "renamed"))))
# What fails on one rank.
report("no data", trainer(dataset_dir=str(folder / differ("data", "none"))))
report("contradiction", trainer(loss_type="dist_softmax", margin=differ(None, 0.5)))
report("observer", lambda: plsc.Trainer(entry().config, observers=differ([], ["tensorboard"])))
report("broken data set", trainer(train_dataset=differ([(b"", 0)], 5)))
report("no checkpoint", trainer(checkpoint_dir=differ("", str(folder / "none"))))
# What may differ.
own = {"num_workers": rank, "test_batch_size": 3 + rank}
report("own", lambda: entry(dataset_dir=str(folder / differ("data", "copy")), **own).train())
report(
    "readers",
    lambda: entry(train_reader=one_image_less(), warmup_epochs=1, model_save_dir=str(folder / "readers")).train(),
)
broken = {"train_reader": broken_on_one_rank, "train_image_num": 40, "model_save_dir": str(folder / "broken")}
report("broken reader", lambda: entry(**broken).train())
# A resumed run: one rank starts anew; classes in another order.
resume = {"checkpoint_dir": str(folder / "output"), "train_epochs": 2}
report("checkpoint", trainer(**{**resume, "checkpoint_dir": differ(str(folder / "output"), "")}))
report("test", lambda: entry(checkpoint_dir=str(folder / differ("output", "readers"))).test())
report("by name", trainer(**resume, dataset_dir=str(folder / "reordered")))
made = plsc.Trainer(entry(**{**resume, "dataset_dir": str(folder / "reordered"), "class_change": "by_name"}).config)
rows = made.head.classes
before = Checkpoint(folder / "output").read("head.weight")[json.loads((folder / "rows.json").read_text())]
found = made.head.parameters["weight"].numpy()
print("ROWS", json.dumps([rows, bool(np.array_equal(found, before[rows.start : rows.stop]))]))

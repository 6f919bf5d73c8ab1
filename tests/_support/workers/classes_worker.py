"""Start from a checkpoint on other classes, and write what each rank holds then.

Arguments: the settings as JSON, {"names": [...], "per_class": n, ...}; the folder for what each rank holds.
The images of a class depend on its name alone.
"""

import json
import sys
import zlib

import numpy as np
import paddle
from paddle import nn

import plsc
from plsc.distributed.topology import init_topology
from plsc.engine.trainer import Trainer
from plsc.models.base_model import BaseModel

SIDE = 8


class Named:
    """Noisy images of one pattern a class, in an order that mixes the classes."""

    def __init__(self, names, per_class):
        self.class_names, self.num_classes = names, len(names)
        self.labels = np.arange(len(names) * per_class) % max(len(names), 1)
        self.images = []
        for index, label in enumerate(self.labels):
            rng = np.random.default_rng(zlib.crc32(names[label].encode()))
            pattern = rng.integers(0, 255, (SIDE, SIDE, 3))
            noise = np.random.default_rng([index // len(names), zlib.crc32(names[label].encode())])
            self.images.append(np.clip(pattern + noise.normal(0, 25, pattern.shape), 0, 255).astype(np.uint8))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]


class Plain(BaseModel):
    """No batch normalization, whose statistics are each rank's own."""

    def __init__(self, emb_dim=16):
        super().__init__(emb_dim)
        self.conv = nn.Conv2D(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * SIDE * SIDE, emb_dim)

    def build_network(self, input, label, is_train=True):
        return self.fc(nn.functional.relu(self.conv(input)).flatten(1))


def make_entry(settings):
    settings = dict(settings)
    entry = plsc.Entry()
    paddle.seed(5)
    entry.train_dataset = Named(settings.pop("names"), settings.pop("per_class", 4))
    entry.set_model(Plain(settings.get("emb_dim", 16)))
    entry.set_emb_size(16)
    entry.set_image_shape((3, SIDE, SIDE))
    entry.set_with_test(False)
    entry.set_num_workers(0)
    entry.set_scale(16.0)
    entry.set_lr(2.0)
    entry.set_log_period(1)
    for name, value in settings.items():
        setattr(entry, name, value)
    return entry


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    trains = settings.pop("train", False)
    trainer = Trainer(make_entry(settings).config)
    held = {
        "counters": np.array([trainer.epoch, trainer.step, trainer.step_in_epoch]),
        "classes": np.array(trainer.head.classes),
        **{f"backbone/{name}": value.numpy() for name, value in trainer.backbone.state_dict().items()},
        **{f"optimizer/{name}": np.array(value) for name, value in trainer.optimizer.state().items()},
        **{f"head/{name}": value.numpy() for name, value in trainer.head.state().items()},
    }
    if trains:
        trainer.train()
    np.savez(f"{sys.argv[2]}/{init_topology().rank}.npz", **held)

"""A few steps of sharded and of replicated heads with each of `LOSS_SETTINGS`; each rank writes its part.

After half of the steps the state goes into a new head, which trains on: 'resumed/...'.
"""

import sys

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.engine.optimizer import NamedOptimizer
from plsc.losses.classifier import Classifier
from tests._support.workers.cases import LOSS_SETTINGS

CLASSES, SAMPLES, STEPS = 7, 12, 4

collectives = Collectives(init_topology())
rank, ranks = collectives.topology.rank, collectives.topology.world_size
found = {}


def make_head(settings):
    config = Config(num_classes=CLASSES, emb_dim=16, scale=16.0, **settings)
    return Classifier(config, collectives, make_optimizer=lambda named: NamedOptimizer(config, named))


def train(head, key, steps):
    for step in steps:
        rng = np.random.default_rng(step)
        features = rng.standard_normal((SAMPLES, 16)).astype("float32") * np.float32(1 + step)
        labels = rng.integers(0, CLASSES, SAMPLES)
        own = np.array_split(np.arange(SAMPLES), ranks)[rank]
        loss = head.forward(paddle.to_tensor(features[own]), paddle.to_tensor(labels[own]), step=step)
        found[f"{key}/loss {step}"] = loss.numpy()
        found[f"{key}/features {step}"] = head.backward().numpy()
        head.update(0.5)
    found.update({f"{key}/{name}": value.numpy() for name, value in head.state().items()})


for name, settings in LOSS_SETTINGS.items():
    for loss_type in (settings["loss_type"], settings["loss_type"].removeprefix("dist_")):
        given, key = (
            {**settings, "loss_type": loss_type},
            f"{name}/{'sharded' if loss_type.startswith('dist_') else 'replicated'}",
        )
        head, again = make_head(given), make_head(given)
        train(head, key, range(STEPS // 2))
        again.load({part: value.numpy().copy() for part, value in head.state().items()})
        train(head, key, range(STEPS // 2, STEPS))
        train(again, f"resumed/{key}", range(STEPS // 2, STEPS))
np.savez(f"{sys.argv[1]}/{rank}.npz", **found)

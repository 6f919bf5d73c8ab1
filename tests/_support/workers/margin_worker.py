"""A few steps of a sharded and of a replicated head whose margin keeps a running mean. Each rank writes its part."""

import sys

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.engine.optimizer import NamedOptimizer
from plsc.losses.classifier import Classifier
from tests._support.workers.cases import RunningMargin

CLASSES, SAMPLES, STEPS = 7, 12, 4

collectives = Collectives(init_topology())
rank, ranks = collectives.topology.rank, collectives.topology.world_size
found = {}
for loss_type in ("dist_arcface", "arcface"):
    config = Config(num_classes=CLASSES, emb_dim=16, loss_type=loss_type, margin_function=RunningMargin(), scale=16.0)
    head = Classifier(config, collectives, make_optimizer=lambda named, config=config: NamedOptimizer(config, named))
    rng = np.random.default_rng(3)
    for step in range(STEPS):
        features = rng.standard_normal((SAMPLES, 16)).astype("float32") * np.float32(1 + step)
        labels = rng.integers(0, CLASSES, SAMPLES)
        own = np.array_split(np.arange(SAMPLES), ranks)[rank]
        loss = head.forward(paddle.to_tensor(features[own]), paddle.to_tensor(labels[own]), step=step)
        gradient = head.backward()
        head.update(0.5)
        found[f"{loss_type}/loss {step}"] = loss.numpy()
        found[f"{loss_type}/features {step}"] = gradient.numpy()
    for name, value in head.state().items():
        found[f"{loss_type}/{name}"] = value.numpy()
np.savez(f"{sys.argv[1]}/{rank}.npz", **found)

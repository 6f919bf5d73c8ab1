"""A few steps of heads whose centers are sharded over groups of ranks, each rank its share of one global batch.

Each rank writes what it holds, for each case of `GROUP_CASES` and each size of a group: `<size>/<case>/...`. After half
of the steps the state of `RESUMED_GROUPS` goes into a new head, which trains on: 'resumed/...'. `bytes` are those of
the tensors that were given to collectives until then, within groups and between them.
"""

import sys

import numpy as np
import paddle

from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.engine.optimizer import NamedOptimizer
from plsc.losses import shard
from plsc.losses.centers import top_classes
from plsc.losses.classifier import Classifier, groups_of
from tests._support.workers.cases import GROUP_CASES, GROUP_STEPS, RESUMED_GROUPS, group_batch

# Chunks of several blocks, and not equally many of them in all shards.
shard.CHUNK_ROWS["cpu"], shard.BLOCK_ROWS["cpu"] = 40, 15

collectives = Collectives(init_topology())
rank, ranks = collectives.topology.rank, collectives.topology.world_size
found, moved = {}, {}


def count(name):
    """Count the bytes of the tensors that are given to a collective."""
    plain = getattr(Collectives, name)

    def counting(self, tensor, *arguments):
        if self.topology.world_size > 1:
            moved[self] = moved.get(self, 0) + tensor.size * tensor.element_size()
        return plain(self, tensor, *arguments)

    setattr(Collectives, name, counting)


for name in ("all_gather", "_all_reduce"):  # with Gloo `reduce_scatter_sum` is the latter
    count(name)


def make_head(config):
    return Classifier(config, collectives, make_optimizer=lambda named: NamedOptimizer(config, named))


def train(head, config, key, steps):
    for step in steps:
        features, labels = group_batch(config.num_classes, step)
        own = np.array_split(np.arange(len(labels)), ranks)[rank]
        loss = head.forward(paddle.to_tensor(features[own]), paddle.to_tensor(labels[own]), step=step, count_above=True)
        found[f"{key}/loss {step}"] = loss.numpy()
        found.update({f"{key}/{name} {step}": value.numpy() for name, value in head.accuracy().items()})
        found[f"{key}/features {step}"] = head.backward().numpy()
        head.update(0.5)
    found.update({f"{key}/{name}": value.numpy() for name, value in head.state().items()})


for size in {1: [1], 2: [1, 2], 3: [1], 4: [1, 2, 4]}[ranks]:
    for name, settings in GROUP_CASES.items():
        settings = {"head_group_size": size, "center_dir": sys.argv[1], **settings}
        config = Config(**{"emb_dim": 16, "scale": 16.0, **settings})
        key = f"{size}/{name}"
        head = make_head(config)
        moved.clear()
        train(head, config, key, range(GROUP_STEPS // 2))
        groups = groups_of(config, collectives)
        found[f"{key}/bytes"] = np.array([moved.get(each, 0) for each in (groups.shards, groups.replicas)])
        saved = {part: value.numpy().copy() for part, value in head.state().items()}
        train(head, config, key, range(GROUP_STEPS // 2, GROUP_STEPS))
        if name in RESUMED_GROUPS:
            again = make_head(config)
            again.load(saved)
            train(again, config, f"resumed/{key}", range(GROUP_STEPS // 2, GROUP_STEPS))
        features, _ = group_batch(config.num_classes, 99)
        top = top_classes(features, head.centers(), count=3, num_classes=config.num_classes, collectives=collectives)
        found[f"{key}/top"] = top
np.savez(f"{sys.argv[1]}/{rank}.npz", **found)

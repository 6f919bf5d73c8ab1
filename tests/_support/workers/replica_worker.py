"""Gradients of replicas on ranks: those of the whole batch. Lines: GRADIENTS <json>."""

import json

import numpy as np
import paddle

from plsc.distributed.collectives import Collectives
from plsc.distributed.replica import Replica
from plsc.distributed.topology import init_topology

topology = init_topology()
paddle.seed(topology.rank)  # parameters differ until rank 0's are taken
layer = paddle.nn.Layer()
for name in ("a", "b", "c"):
    setattr(layer, name, paddle.nn.Linear(3, 2, bias_attr=False))
layer.b.weight.set_value(paddle.ones([3, 2]))
layer.register_buffer("mean", paddle.full([2], float(topology.rank)))
# Rank 1 alone uses b, no rank uses c.
layer.forward = lambda images: layer.a(images) + (layer.b(images) if topology.rank == 1 else 0.0)
replica = Replica(layer, Collectives(topology))
for _ in range(2):
    images = paddle.to_tensor(np.random.default_rng(topology.rank).normal(size=(4, 3)).astype(np.float32))
    replica(images).backward(paddle.ones([4, 2]))
    replica.average_gradients()
    found = {name: item.grad is not None and item.grad.tolist() for name, item in layer.named_parameters()}
    for item in layer.parameters():
        item.clear_gradient()
print("GRADIENTS", json.dumps([found, layer.a.weight.tolist(), layer.mean.tolist()]), flush=True)

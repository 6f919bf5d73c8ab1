"""Loss, gradients and accuracy of each case on real ranks; each rank writes what it holds."""

import sys

import numpy as np
import paddle

from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.losses.margins.combined import Margin
from plsc.losses.reference import ShardedSoftmax
from plsc.utils.ranges import shard_range
from tests._support.workers.cases import HEAD_CASES, head_problem

topology = init_topology()
collectives = Collectives(topology)
found = {}
for name, case in HEAD_CASES.items():
    features, labels, weight, bias = head_problem(case, topology.world_size)
    start, stop = shard_range(len(weight), topology.world_size, topology.rank)
    own = np.array_split(np.arange(len(labels)), topology.world_size)[topology.rank]
    x = collectives.all_gather(paddle.to_tensor(features[own]))
    y = collectives.all_gather(paddle.to_tensor(labels[own]))
    margin = Margin(*case.margins) if case.margins else None
    head = ShardedSoftmax(margin, case.scale, start, collectives)
    state = head.forward(
        x,
        y,
        paddle.to_tensor(weight[start:stop]),
        None if bias is None else paddle.to_tensor(bias[start:stop]),
        count_above=True,
    )
    d_x, d_w, d_b = head.backward(state)
    found[f"{name}/loss"] = state.loss.numpy()
    found[f"{name}/above"] = state.above.numpy()
    found[f"{name}/features"] = collectives.reduce_scatter_sum(d_x).numpy()
    found[f"{name}/weight"] = d_w.numpy()
    if d_b is not None:
        found[f"{name}/bias"] = d_b.numpy()
np.savez(f"{sys.argv[1]}/{topology.rank}.npz", **found)

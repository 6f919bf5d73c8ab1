"""Loss, gradients and accuracy of each case on real ranks, by both heads; each rank writes what it holds."""

import sys

import numpy as np
import paddle

from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import init_topology
from plsc.losses.fused import FusedSoftmax
from plsc.losses.reference import ReferenceSoftmax
from plsc.losses.row_optimizers import SGD
from plsc.losses.shard import Shard
from plsc.utils.ranges import shard_range
from tests._support.head_problems import collect
from tests._support.workers.cases import HEAD_CASES, head_problem

topology = init_topology()
collectives = Collectives(topology)
found = {}
for name, case in HEAD_CASES.items():
    features, labels, weight, bias = head_problem(case, topology.world_size)
    start, stop = shard_range(len(weight), topology.world_size, shard=topology.rank)
    own = np.array_split(np.arange(len(labels)), topology.world_size)[topology.rank]
    x = collectives.all_gather(paddle.to_tensor(features[own]))
    y = collectives.all_gather(paddle.to_tensor(labels[own]))
    parameters = {"weight": paddle.to_tensor(weight[start:stop])}
    if bias is not None:
        parameters["bias"] = paddle.to_tensor(bias[start:stop])

    reference = ReferenceSoftmax(case.margin, case.scale, first_class=start, reducer=collectives)
    state = reference.loss_and_feature_gradient(x, y, **parameters, count_above=True)
    d_w, d_b = reference.row_gradients(state)
    played = {"reference": (state, d_w, d_b)}

    fused = FusedSoftmax(case.margin, case.scale, reducer=collectives)
    shard = Shard(parameters["weight"], SGD(), bias=parameters.get("bias"), first_class=start)
    state = fused.loss_and_feature_gradient(x, y, shard=shard, count_above=True)
    played["fused"] = (state, *collect(fused.row_gradients(state), shard))

    for head, (state, d_w, d_b) in played.items():
        key = f"{name}/{head}"
        found[f"{key}/loss"] = state.loss.numpy()
        found[f"{key}/num_greater"] = state.num_greater.numpy()
        found[f"{key}/features"] = collectives.reduce_scatter_sum(state.feature_gradient).numpy()
        found[f"{key}/weight"] = d_w.numpy()
        if d_b is not None:
            found[f"{key}/bias"] = d_b.numpy()
np.savez(f"{sys.argv[1]}/{topology.rank}.npz", **found)

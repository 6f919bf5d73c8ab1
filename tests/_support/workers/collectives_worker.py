"""Each collective and its adjoint on numbers of the rank's own; each rank writes what it got: <folder>/<rank>.npz."""

import sys

import numpy as np
import paddle

from plsc.distributed.collectives import Collectives
from plsc.distributed.groups import head_groups
from plsc.distributed.topology import init_topology

ROWS = 3


def own(rank, ranks, name):
    """The tensors of a rank: 'rows' [ROWS, 2], 'all' [ranks ROWS, 2]."""
    shape = {"rows": [ROWS, 2], "all": [ranks * ROWS, 2]}[name]
    return np.random.default_rng([rank, len(name)]).integers(-8, 9, shape).astype(np.float32)


def main():
    topology = init_topology()
    collectives, found = Collectives(topology), {}
    rank, ranks = topology.rank, topology.world_size
    for dtype in ("float32", "float16", "bfloat16", "int64"):
        for name, collective, given in (
            ("all_gather", collectives.all_gather, "rows"),
            ("reduce_scatter_sum", collectives.reduce_scatter_sum, "all"),
            ("all_reduce_sum", collectives.all_reduce_sum, "rows"),
            ("all_reduce_max", collectives.all_reduce_max, "rows"),
            ("all_reduce_min", collectives.all_reduce_min, "rows"),
        ):
            tensor = paddle.to_tensor(own(rank, ranks, given)).astype(dtype)
            made = collective(tensor)
            assert made.place.is_gpu_place() == tensor.place.is_gpu_place()
            found[f"{name}/{dtype}"] = made.astype("float32").numpy()
    objects = collectives.gather_objects({"rank": rank})
    assert objects == [{"rank": other} for other in range(ranks)]
    collectives.barrier()
    if ranks == 4:
        groups = head_groups(collectives, 2)
        for name, part in (("shards", groups.shards), ("replicas", groups.replicas)):
            found[f"{name}/all_gather"] = part.all_gather(paddle.to_tensor(own(rank, ranks, "rows"))).numpy()
            found[f"{name}/all_reduce"] = part.all_reduce_sum(paddle.to_tensor(own(rank, ranks, "rows"))).numpy()
            scattered = part.reduce_scatter_sum(paddle.to_tensor(own(rank, ranks, "all")))
            found[f"{name}/reduce_scatter"] = scattered.numpy()
            assert len(part.gather_objects(rank)) == 2
            part.barrier()
    np.savez(f"{sys.argv[1]}/{rank}.npz", on_gpu=topology.on_gpu, **found)


if __name__ == "__main__":
    main()

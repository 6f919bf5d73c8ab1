"""PyTorch Partial FC (An et al., 2021), sharded over gloo ranks: a straightforward implementation, tuned fairly.

Run by head.py with a Python that has torch; each rank is told its place by RANK, WORLD_SIZE and MASTER_*.
No copy is made that the method does not need: sampled rows are gathered once and written back once, gradients are
freed between steps, and the softmax runs in place.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import Problem, measure, resident_bytes, write_result

MARGIN, SCALE, RATE, MOMENTUM, DECAY = 0.5, 64.0, 0.1, 0.9, 5e-4


class Gather(torch.autograd.Function):
    """All ranks' rows; the gradient is summed over ranks."""

    @staticmethod
    def forward(context, rows):
        gathered = torch.empty(rows.shape[0] * dist.get_world_size(), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class ShardedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of logits [G, S] over all shards; `owned` rows have their target in this one."""

    @staticmethod
    def forward(context, logits, owned, target):
        peak = logits.amax(1, keepdim=True)
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        probability = logits.sub_(peak).exp_()
        total = probability.sum(1, keepdim=True)
        dist.all_reduce(total)
        probability.div_(total)
        own = torch.zeros(len(logits))
        own[owned] = probability[owned, target]
        dist.all_reduce(own)
        context.save_for_backward(probability, owned, target)
        return -own.clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(context, gradient):
        probability, owned, target = context.saved_tensors
        probability[owned, target] -= 1
        return probability.mul_(gradient / len(probability)), None, None


class PartialFC:
    def __init__(self, problem: Problem) -> None:
        self.weight = torch.empty(problem.shard, problem.dim).normal_(0, 0.01)
        self.velocity = torch.zeros_like(self.weight)
        self.first = dist.get_rank() * problem.shard
        self.count = int(problem.ratio * problem.shard)

    def step(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        x = Gather.apply(features)
        y = torch.empty(len(x), dtype=labels.dtype)
        dist.all_gather_into_tensor(y, labels)
        y = y - self.first
        owned = torch.nonzero((y >= 0) & (y < len(self.weight)))[:, 0]
        target, rows = y[owned], None
        weight, velocity = self.weight, self.velocity
        if self.count < len(weight):
            positive = torch.unique(target)
            chance = torch.rand(len(weight))
            chance[positive] = 2.0
            rows = torch.topk(chance, self.count).indices.sort().values
            target = torch.searchsorted(rows, target)
            weight, velocity = weight[rows], velocity[rows]
        weight.requires_grad_(True)
        logits = F.linear(F.normalize(x), F.normalize(weight)).clamp(-1, 1)
        cosine = logits[owned, target]
        with_margin = torch.cos(torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6)) + MARGIN)
        logits = logits.index_put((owned, target), with_margin) * SCALE
        ShardedCrossEntropy.apply(logits, owned, target).backward()
        with torch.no_grad():
            gradient = weight.grad.add_(weight, alpha=DECAY)
            velocity.mul_(MOMENTUM).add_(gradient)
            weight.add_(velocity, alpha=-RATE)
            weight.grad = None
            weight.requires_grad_(False)
            if rows is not None:
                self.weight[rows], self.velocity[rows] = weight, velocity


def main() -> None:
    problem, output = Problem(**json.loads(sys.argv[1])), sys.argv[2]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group("gloo")
    footprint = resident_bytes()
    torch.manual_seed(dist.get_rank())
    layer = PartialFC(problem)
    features = torch.randn(problem.batch, problem.dim, requires_grad=True)
    labels = torch.randint(problem.classes, (problem.batch,))

    def step() -> None:
        features.grad = None
        layer.step(features, labels)

    result = measure(problem, footprint, step)
    if dist.get_rank() == 0:
        write_result(output, result)


if __name__ == "__main__":
    main()

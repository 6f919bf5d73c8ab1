"""Partial FC in PyTorch on gloo: one rank of the head that `head.py` compares with. Rank 0 prints a line of JSON.

Written after An et al., CVPR 2022 (ArcFace margin, class-sharded softmax, sampling of rows with their momentum), and
tuned: in place where autograd allows it, the softmax and its gradient in one buffer, `torch.optim.SGD(fused=True)`, one
thread, huge pages by the caller's environment. The margin is written over the target logits and its derivative is taken
as 1, as InsightFace does.

With `--published`, a step does what InsightFace's PartialFC_V2 does: autograd through the choice of rows, so that
gradient and update are those of the entire weight; acos and cos over all logits; a one-hot matrix of the owned samples
in backward.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

SCALE, MARGIN, LEARNING_RATE, MOMENTUM, L2 = 64.0, 0.5, 0.01, 0.9, 5e-4


class Gather(torch.autograd.Function):
    """All ranks' rows; backward sums over ranks and keeps this rank's."""

    @staticmethod
    def forward(context, rows):
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient):
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


class CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over class shards; the logits' memory becomes the probabilities and the gradient."""

    @staticmethod
    def forward(context, logits, row, owned):
        peak = logits.amax(1, keepdim=True)
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        logits.sub_(peak)
        at = owned.nonzero().squeeze(1)
        target = torch.zeros(len(row))
        target[at] = logits[at, row[at]]
        logits.exp_()
        total = logits.sum(1, keepdim=True)
        both = torch.cat([total, target.unsqueeze(1)], 1)
        dist.all_reduce(both)
        logits.div_(both[:, :1])
        context.save_for_backward(logits, at, row)
        return (both[:, 0].log() - both[:, 1]).mean()

    @staticmethod
    def backward(context, by_loss):
        logits, at, row = context.saved_tensors
        logits[at, row[at]] -= 1.0
        return logits.mul_(by_loss / len(row)), None, None


class PublishedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy over class shards, with a one-hot matrix in backward."""

    @staticmethod
    def forward(context, logits, row, owned):
        peak = logits.amax(1, keepdim=True)
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        logits = logits.sub_(peak).exp_()
        total = logits.sum(1, keepdim=True)
        dist.all_reduce(total)
        logits.div_(total)
        at = owned.nonzero().squeeze(1)
        probability = torch.zeros(len(row))
        probability[at] = logits[at, row[at]]
        dist.all_reduce(probability)
        context.save_for_backward(logits, at, row)
        return -probability.clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(context, by_loss):
        logits, at, row = context.saved_tensors
        one_hot = torch.zeros(len(at), logits.shape[1])
        one_hot.scatter_(1, row[at].unsqueeze(1), 1.0)
        logits[at] -= one_hot
        return logits.div_(len(row)) * by_loss, None, None


class PartialFC:
    def __init__(self, size, width, first, ratio):
        self.weight, self.velocity = torch.empty(size, width).normal_(0, 0.01), torch.zeros(size, width)
        self.first, self.count = first, math.ceil(ratio * size)
        self.all_classes = ratio >= 1.0

    def gather(self, features, labels):
        """(all features, their rows here, whether they have one, the rows that are chosen or None)."""
        x = Gather.apply(features.requires_grad_())
        parts = [torch.empty_like(labels) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, labels)
        row = torch.cat(parts) - self.first
        owned = (row >= 0) & (row < len(self.weight))
        if self.all_classes:
            return x, row, owned, None
        score = torch.rand(len(self.weight))
        score[row[owned]] = 2.0
        index = torch.topk(score, self.count)[1].sort()[0]
        return x, torch.searchsorted(index, row.clamp(0, len(self.weight) - 1)), owned, index

    def step(self, features, labels):
        x, row, owned, index = self.gather(features, labels)
        weight, velocity = self.weight, self.velocity
        if not self.all_classes:
            weight, velocity = self.weight[index], self.velocity[index]
        weight = weight.detach().requires_grad_()
        cosine = F.linear(F.normalize(x), F.normalize(weight)).clamp(-1, 1)
        at = owned.nonzero().squeeze(1)
        with torch.no_grad():
            target = cosine[at, row[at]]
        logits = cosine * SCALE
        angle = torch.acos(target.clamp(-1 + 1e-6, 1 - 1e-6)) + MARGIN
        logits.data[at, row[at]] = SCALE * torch.cos(angle)
        loss = CrossEntropy.apply(logits, row, owned)
        loss.backward()
        optimizer = torch.optim.SGD([weight], LEARNING_RATE, MOMENTUM, weight_decay=L2, fused=True)
        optimizer.state[weight]["momentum_buffer"] = velocity
        optimizer.step()
        if not self.all_classes:
            self.weight.index_copy_(0, index, weight.detach())
            self.velocity.index_copy_(0, index, velocity)
        return loss.item()


class PublishedPartialFC(PartialFC):
    def __init__(self, *args):
        super().__init__(*args)
        self.velocity = None
        self.weight.requires_grad_()
        self.optimizer = torch.optim.SGD([self.weight], LEARNING_RATE, MOMENTUM, weight_decay=L2)

    def step(self, features, labels):
        x, row, owned, index = self.gather(features, labels)
        weight = self.weight if self.all_classes else self.weight[index]
        logits = F.linear(F.normalize(x), F.normalize(weight)).clamp(-1, 1)
        at = owned.nonzero().squeeze(1)
        with torch.no_grad():
            angle = logits[at, row[at]].acos()
            logits.acos_()
            logits[at, row[at]] = angle + MARGIN
            logits.cos_()
        loss = PublishedCrossEntropy.apply(logits * SCALE, row, owned)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


@torch.no_grad()
def gemm(weight, samples, chunk=2048):
    x = F.normalize(torch.randn(samples, weight.shape[1]))
    total = torch.zeros_like(x)
    logits, gradient = torch.empty(chunk, samples), torch.empty(chunk, weight.shape[1])
    for rows in weight.split(chunk):
        count = len(rows)
        torch.mm(rows, x.t(), out=logits[:count])
        total.addmm_(logits[:count].t(), rows)
        torch.mm(logits[:count], x, out=gradient[:count])


def memory(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def seconds(work):
    dist.barrier()
    start = time.perf_counter()
    work()
    longest = torch.tensor([time.perf_counter() - start])
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("classes", 1000000), ("dim", 512), ("batch", 64), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    size = options.classes // ranks + (rank < options.classes % ranks)
    first = rank * (options.classes // ranks) + min(rank, options.classes % ranks)
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    head = (PublishedPartialFC if options.published else PartialFC)(size, options.dim, first, options.ratio)
    samples = options.batch * ranks

    def step():
        return head.step(
            torch.randn(options.batch, options.dim),
            torch.randint(0, options.classes, (options.batch,)),
        )

    seconds(step)
    bare, own = [], []
    for _ in range(options.steps):
        bare.append(seconds(lambda: gemm(head.weight, samples)))
        own.append(seconds(step))
    state = 2 * size * options.dim * 4
    if rank == 0:
        print(
            json.dumps(
                {
                    "seconds": statistics.median(own),
                    "gemm_seconds": statistics.median(bare),
                    "memory": memory("VmHWM") - base,
                    "state": state,
                    "torch": torch.__version__,
                }
            )
        )


if __name__ == "__main__":
    main()

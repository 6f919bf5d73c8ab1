"""What the head is measured against, in Paddle: the bare matrix products, and ArcFace in plain operators."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from measure import Problem

from plsc.distributed.collectives import Collectives

MARGIN, SCALE, RATE = 0.5, 64.0, 0.1


class BareProducts:
    """The floor: the three products of one step, in chunks of classes, into buffers made once; nothing else."""

    CHUNK = 2048

    def __init__(self, problem: Problem, collectives: Collectives) -> None:
        self.weight = paddle.randn([problem.shard, problem.dim]) * 0.01
        self.features = paddle.randn([problem.gathered, problem.dim])
        self.logits = paddle.empty([self.CHUNK, problem.gathered])
        self.gradient = paddle.empty([self.CHUNK, problem.dim])
        self.feature_gradient = paddle.empty([problem.gathered, problem.dim])

    @paddle.no_grad()
    def step(self, features: paddle.Tensor, labels: paddle.Tensor) -> None:
        for start in range(0, self.weight.shape[0], self.CHUNK):
            rows = self.weight[start : start + self.CHUNK]
            logits, gradient = self.logits[: rows.shape[0]], self.gradient[: rows.shape[0]]
            paddle.matmul(rows, self.features, transpose_y=True, out=logits)
            paddle.matmul(logits, rows, transpose_x=True, out=self.feature_gradient)
            paddle.matmul(logits, self.features, out=gradient)


class PlainOperators:
    """ArcFace as the first PLSC had it: the whole logits, acos, a dense one-hot, autograd and Momentum."""

    def __init__(self, problem: Problem, collectives: Collectives) -> None:
        self.collectives, self.shard = collectives, problem.shard
        self.first = collectives.topology.rank * problem.shard
        self.weight = paddle.create_parameter([problem.shard, problem.dim], "float32")
        self.optimizer = paddle.optimizer.Momentum(RATE, 0.9, parameters=[self.weight], weight_decay=5e-4)

    def step(self, features: paddle.Tensor, labels: paddle.Tensor) -> None:
        x = self.collectives.all_gather(features.detach())
        y = self.collectives.all_gather(labels) - self.first
        x.stop_gradient = False
        one_hot = F.one_hot(paddle.where((y >= 0) & (y < self.shard), y, paddle.full_like(y, self.shard)),
                            self.shard + 1)[:, : self.shard]
        cosine = F.normalize(x) @ F.normalize(self.weight).T
        angle = paddle.acos(cosine.clip(-1 + 1e-6, 1 - 1e-6))
        logits = SCALE * paddle.cos(angle + MARGIN * one_hot)
        peak = self.collectives.all_reduce_max(logits.detach().max(axis=1, keepdim=True))
        exponential = paddle.exp(logits - peak)
        total = self.collectives.all_reduce_sum(exponential.detach().sum(axis=1, keepdim=True))
        # The gradient of the mean loss by the logits, which no single rank's autograd could know.
        logits.backward(((exponential.detach() / total) - one_hot) / x.shape[0])
        self.collectives.reduce_scatter_sum(x.grad)
        self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)

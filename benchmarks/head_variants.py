"""The heads that `head.py` measures, each as a step on one rank's features [N, D] and labels [N].

N batch on this rank, G gathered batch, D embedding, S classes of this shard.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from plsc.distributed.collectives import Collectives
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.reference import ReferenceSoftmax
from plsc.losses.row_optimizers import Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard

MARGIN, SCALE, LEARNING_RATE, MOMENTUM, L2 = CombinedMargin(m2=0.5), 64.0, 0.01, 0.9, 5e-4


def make_weight(size: int, width: int) -> paddle.Tensor:
    """[S, D] of N(0, 0.01), filled piece by piece so that filling it is not what takes the memory."""
    weight = paddle.empty([size, width])
    for start in range(0, size, 8192):
        rows = weight[start : start + 8192]
        paddle.assign(paddle.randn(rows.shape) * 0.01, rows)
    return weight


class Gemm:
    """The three matrix products that any exact head needs, in the fastest form found, and nothing else."""

    def __init__(self, weight: paddle.Tensor, samples: int, chunk: int = 2048) -> None:
        width = weight.shape[1]
        self.chunks = [weight[start : start + chunk] for start in range(0, weight.shape[0], chunk)]
        self.x = F.normalize(paddle.randn([samples, width]))
        self.transposed = self.x.t().contiguous()
        self.logits, self.gradient = paddle.empty([chunk, samples]), paddle.empty([chunk, width])
        self.part = paddle.empty([samples, width])

    @paddle.no_grad()
    def __call__(self) -> None:
        total = paddle.zeros_like(self.part)
        for rows in self.chunks:
            count = rows.shape[0]
            paddle.matmul(rows, self.transposed, out=self.logits[:count])
            paddle.matmul(self.logits[:count], rows, transpose_x=True, out=self.part)
            total.add_(self.part)
            paddle.matmul(self.logits[:count], self.x, out=self.gradient[:count])


class Fused:
    """The library's fused head, with either mode of logits, on all classes or on a sample."""

    def __init__(
        self, weight, first_class, collectives: Collectives, *, samples: int, logits: str, ratio: float
    ) -> None:
        self.collectives = collectives
        self.softmax = FusedSoftmax(MARGIN, SCALE, reducer=collectives, logits=logits)
        self.shard = Shard(weight, Momentum(MOMENTUM, L2), first_class=first_class)
        self.sampled = SampledShard(self.shard, ratio=ratio, samples=samples) if ratio < 1.0 else None
        self.steps = 0

    def __call__(self, features: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        x, y = self.collectives.all_gather(features), self.collectives.all_gather(labels)
        shard = self.sampled or self.shard
        if self.sampled:
            self.steps += 1
            self.sampled.draw(y, seed=self.steps * 1000 + self.collectives.topology.rank)
        state = self.softmax.loss_and_feature_gradient(x, y, shard=shard)
        shard.update(self.softmax.row_gradients(state, l2=L2), learning_rate=LEARNING_RATE)
        self.collectives.reduce_scatter_sum(state.feature_gradient)
        return state.loss


class Unfused:
    """The library's head for any optimizer: the gradient of the weight as a tensor, then Paddle's Momentum."""

    def __init__(self, weight, first_class, collectives: Collectives) -> None:
        self.collectives = collectives
        self.softmax = ReferenceSoftmax(MARGIN, SCALE, first_class=first_class, reducer=collectives)
        self.weight = as_parameter(weight)
        self.optimizer = paddle.optimizer.Momentum(LEARNING_RATE, MOMENTUM, [self.weight], weight_decay=L2)

    def __call__(self, features: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        x, y = self.collectives.all_gather(features), self.collectives.all_gather(labels)
        state = self.softmax.loss_and_feature_gradient(x, y, weight=self.weight)
        self.collectives.reduce_scatter_sum(state.feature_gradient)
        self.weight.grad = self.softmax.row_gradients(state).weight
        self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)
        return state.loss


class Plain:
    """ArcFace as it is usually written: acos and one-hot over all logits, autograd, Paddle's Momentum."""

    def __init__(self, weight, first_class, collectives: Collectives) -> None:
        self.collectives, self.first_class, self.weight = collectives, first_class, as_parameter(weight)
        self.optimizer = paddle.optimizer.Momentum(LEARNING_RATE, MOMENTUM, [self.weight], weight_decay=L2)

    def __call__(self, features: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        x, y = self.collectives.all_gather(features), self.collectives.all_gather(labels)
        x.stop_gradient = False
        row = y - self.first_class
        owned = (row >= 0) & (row < self.weight.shape[0])
        one_hot = F.one_hot(paddle.clip(row, 0, self.weight.shape[0] - 1), self.weight.shape[0])
        one_hot = one_hot * owned.astype("float32").unsqueeze(1)
        cosine = F.normalize(x) @ F.normalize(self.weight).t()
        angle = paddle.acos(paddle.clip(cosine, -1 + 1e-6, 1 - 1e-6))
        logits = SCALE * paddle.cos(angle + MARGIN.m2 * one_hot)
        with paddle.no_grad():
            peak = self.collectives.all_reduce_max(logits.max(axis=1))
            total = self.collectives.all_reduce_sum(paddle.exp(logits - peak.unsqueeze(1)).sum(axis=1))
            log_total = peak + paddle.log(total)
            target = self.collectives.all_reduce_sum((logits * one_hot).sum(axis=1))
        # Its gradient is that of the mean cross-entropy over all shards.
        surrogate = (paddle.exp(logits - log_total.unsqueeze(1)) - one_hot * logits).sum() / len(y)
        surrogate.backward()
        self.collectives.reduce_scatter_sum(x.grad)
        self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)
        return (log_total - target).mean()


def as_parameter(weight: paddle.Tensor) -> paddle.Tensor:
    """The same memory as a parameter: it requires a gradient and has the name that optimizers need."""
    weight.stop_gradient, weight.persistable, weight.name = False, True, "class_centers"
    return weight

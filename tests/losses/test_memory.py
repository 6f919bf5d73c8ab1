"""What a step takes beside weight and state, and what is chosen by it."""

from __future__ import annotations

import logging
import tracemalloc

import paddle
import pytest

from plsc.losses import heads, ops, shard, storage
from plsc.losses.fused import FusedSoftmax
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.precision import HalfPrecision, Precision
from plsc.losses.row_optimizers import SGD, AdamW, Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.utils import memory
from tests._support.negatives_oracle import CASES as NEGATIVES
from tests._support.negatives_problems import fused_of

pytestmark = pytest.mark.cpu("makes the CPU work as a GPU by itself, and counts its memory")

CHUNK = 512


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """A chunk is a block, and no NumPy."""
    monkeypatch.setitem(shard.CHUNK_ROWS, "cpu", CHUNK)
    monkeypatch.setitem(shard.BLOCK_ROWS, "cpu", CHUNK)
    monkeypatch.setattr(ops, "host_view", lambda tensor: None)
    monkeypatch.setattr(storage, "host_view", lambda tensor: None)
    monkeypatch.setattr(storage, "_host_view", lambda tensor: None)


class Allocated:
    """What Paddle allocates in host memory within the context, beyond what there was: `peak` and `left`."""

    def __enter__(self):
        paddle.base.core.host_memory_stat_reset_peak_value("Allocated", 0)
        self._before = paddle.base.core.host_memory_stat_current_value("Allocated", 0)
        return self

    def __exit__(self, *error):
        self.peak = paddle.base.core.host_memory_stat_peak_value("Allocated", 0) - self._before
        self.left = paddle.base.core.host_memory_stat_current_value("Allocated", 0) - self._before


@pytest.mark.parametrize("count_above", [False, True])
@pytest.mark.parametrize("scale", [64.0, 128.0])
@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize(
    "precision, by_rows",
    [(Precision(), False), (Precision(), True), (HalfPrecision("float16"), None), (HalfPrecision("bfloat16"), None)],
)
@pytest.mark.parametrize("samples, width", [(512, 16), (256, 512), (512, 512)])
def test_a_step_takes_no_more_than_it_says(as_on_a_gpu, samples, width, precision, by_rows, logits, scale, count_above):
    own = Shard(paddle.randn([4 * CHUNK, width]), SGD())
    softmax = FusedSoftmax(CombinedMargin(m2=0.5), scale, logits=logits, precision=precision, by_rows=by_rows)
    features, labels = paddle.randn([samples, width]), paddle.randint(0, 4 * CHUNK, [samples])
    own.squared_norms()
    said = softmax.memory(own, samples)
    with Allocated() as forward:
        state = softmax.loss_and_feature_gradient(features, labels, shard=own, count_above=count_above)
    with Allocated() as backward:
        own.update(softmax.row_gradients(state), learning_rate=0.0)
    taken = max(forward.peak, forward.left + backward.peak)
    assert taken <= said.kept + said.temporary
    assert taken >= said.kept + said.temporary / 4


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("optimizer, state", [(Momentum(), "float32"), (Momentum(), "bfloat16"), (AdamW(), "float32")])
@pytest.mark.parametrize(
    "precision, by_rows", [(Precision(), False), (Precision(), True), (HalfPrecision("float16"), None)]
)
@pytest.mark.parametrize("samples, width", [(64, 512), (512, 512)])
def test_no_optimizer_makes_a_step_take_more(as_on_a_gpu, samples, width, precision, by_rows, optimizer, state, ratio):
    full = Shard(paddle.randn([4 * CHUNK, width]), optimizer, state_storage=state)
    own = full if ratio == 1.0 else SampledShard(full, ratio=ratio, samples=samples)
    softmax = FusedSoftmax(CombinedMargin(m2=0.5), logits="recompute", precision=precision, by_rows=by_rows)
    features, labels = paddle.randn([samples, width]), paddle.randint(0, 4 * CHUNK, [samples])
    full.squared_norms()
    if ratio < 1.0:
        own.draw(labels, seed=1)
    said = softmax.memory(own, samples)
    with Allocated() as forward:
        made = softmax.loss_and_feature_gradient(features, labels, shard=own)
    with Allocated() as backward:
        own.update(softmax.row_gradients(made), learning_rate=0.0)
    assert max(forward.peak, forward.left + backward.peak) <= said.kept + said.temporary


@pytest.mark.parametrize(
    "device, rows", [("gpu", {64: 65536, 1024: 65536, 8192: 8192, 10**7: 128}), ("cpu", {64: 2048})]
)
def test_a_chunk_has_fewer_rows_for_a_large_batch(monkeypatch, device, rows):
    own = Shard(paddle.zeros([10, 4]), SGD())
    own._device = device
    for samples, expected in rows.items():
        own.fit(samples)
        assert own.chunk_rows == expected and own.block_rows <= expected


def test_chunks_for_another_batch_are_made_anew(monkeypatch):
    monkeypatch.setitem(shard.CHUNK_LOGITS, "cpu", 200 * 100)
    own = Shard(paddle.zeros([500, 4]), SGD())
    assert [chunk.rows.shape[0] for chunk in own.chunks] == [500]
    own.fit(100)
    assert [chunk.rows.shape[0] for chunk in own.chunks] == [200, 200, 100]


@pytest.mark.parametrize("half, kept", [(False, 4), (True, 2)])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_logits_are_kept_where_they_take_half_of_the_free_memory_at_most(monkeypatch, caplog, ratio, half, kept):
    chosen = []

    def make(logits):
        chosen.append(logits)
        precision = HalfPrecision("float16") if half else Precision()
        return FusedSoftmax(CombinedMargin(m2=0.5), logits=logits, precision=precision)

    samples, classes, width = 16, 4096, 8
    needed = kept * samples * int(classes * ratio)
    chunk = 4 * (3.5 * samples * min(2048, int(classes * ratio)) + 4 * width * 2048 + 6 * width * samples)
    for free, mode in ((2 * (needed + chunk), "store"), (2 * (needed + chunk) - 2, "recompute")):
        monkeypatch.setattr(heads, "_free_bytes", lambda tensor, free=free: int(free))
        head = heads.FusedHead(Shard(paddle.randn([classes, width]), SGD()), make, sample_ratio=ratio)
        with caplog.at_level(logging.INFO, "plsc"):
            head.forward(paddle.randn([samples, width]), paddle.arange(samples), count_above=False, seed=1)
        assert chosen[-1] == mode
        assert f"mode '{mode}'" in caplog.text


@pytest.mark.parametrize("samples", [64, 128])
def test_a_step_that_computes_logits_twice_takes_a_twentieth_of_the_state(samples):
    """On a CPU, NumPy's temporaries included; the state is that of momentum. Stored logits take more."""
    rows, width = 50_000, 512
    own, state = Shard(paddle.ones([rows, width]), Momentum()), 8 * rows * width
    features, labels = paddle.randn([samples, width]), paddle.randint(0, rows, [samples])
    taken = {}
    for logits in ("recompute", "store"):
        softmax = FusedSoftmax(CombinedMargin(m2=0.5), logits=logits)
        own.invalidate_norms()
        tracemalloc.start()
        with Allocated() as paddles:
            for _ in range(2):
                found = softmax.loss_and_feature_gradient(features, labels, shard=own)
                own.update(softmax.row_gradients(found, l2=5e-4), learning_rate=0.1)
                del found
        taken[logits] = paddles.peak + tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert taken["recompute"] <= 0.05 * state
    assert taken["store"] > 0.05 * state


def test_free_memory_of_a_gpu_is_the_drivers_and_that_of_the_pool(monkeypatch):
    monkeypatch.setattr(paddle.base.core, "gpu_memory_available", lambda: 10_000, raising=False)
    monkeypatch.setattr(paddle.device.cuda, "memory_reserved", lambda: 7_000)
    monkeypatch.setattr(paddle.device.cuda, "memory_allocated", lambda: 4_000)
    assert memory.available_gpu_memory() == 13_000


@pytest.mark.parametrize("logits", ["store", "recompute"])
@pytest.mark.parametrize(
    "precision, by_rows",
    [(Precision(), False), (Precision(), True), (HalfPrecision("float16"), None), (HalfPrecision("bfloat16"), None)],
)
@pytest.mark.parametrize("samples, width", [(512, 16), (256, 512)])
@pytest.mark.parametrize("name", NEGATIVES)
def test_a_step_that_changes_negatives_takes_no_more_than_it_says(
    as_on_a_gpu, name, samples, width, precision, by_rows, logits
):
    case = NEGATIVES[name]
    group = [case.subcenters] if case.subcenters > 1 else []
    own = Shard(paddle.randn([4 * CHUNK // case.subcenters, *group, width]), SGD())
    softmax = fused_of(case, case.margin(), logits=logits, precision=precision, by_rows=by_rows)
    features, labels = paddle.randn([samples, width]), paddle.randint(0, own.num_classes, [samples])
    own.squared_norms()
    said = softmax.memory(own, samples)
    with Allocated() as forward:
        state = softmax.loss_and_feature_gradient(features, labels, shard=own, count_above=True)
    with Allocated() as backward:
        own.update(softmax.row_gradients(state), learning_rate=0.0)
    taken = max(forward.peak, forward.left + backward.peak)
    assert taken <= said.kept + said.temporary

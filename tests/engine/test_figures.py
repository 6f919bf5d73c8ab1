"""What logged steps are measured by, against sums over samples in float64; on any number of ranks; without a wait."""

from __future__ import annotations

import json
import math

import numpy as np
import paddle
import pytest

from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.engine.figures import COSINE_EDGES, NORM_EDGES, Figures
from plsc.engine.observers import Observer, TrainingClock
from plsc.engine.observers.measures import Histogram, Measures, from_counts_above
from plsc.engine.optimizer import NamedOptimizer
from plsc.engine.transfer import CPUTransfers
from plsc.losses.classifier import Classifier
from tests._support.ranks import launch

D, C = 16, 23


class Head:
    """A head whose cosines are given."""

    def __init__(self, found):
        self.found = found

    def target_cosines(self):
        return None if self.found is None else tuple(map(paddle.to_tensor, self.found))


def measure(features, found, gradients=(), labels=None):
    figures = Figures(Head(found), collectives=Collectives(), transfers=CPUTransfers(), global_batch=len(features))
    labels = paddle.to_tensor(np.zeros(len(features), np.int64) if labels is None else labels)
    figures.collect(paddle.to_tensor(features), labels, [paddle.to_tensor(gradient) for gradient in gradients])
    return figures.take(1, TrainingClock())


def binned(values, edges):
    """The counts of a loop over numbers; what lies beyond the edges is in the outer bins."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        place = max((number for number in range(1, len(counts)) if value >= np.float32(edges[number])), default=0)
        counts[place] += 1
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_means_and_histograms_are_those_of_a_loop_over_samples(seed):
    rng = np.random.default_rng(seed)
    features = (rng.standard_normal((37, D)) * 10 ** rng.uniform(-3, 4, (37, 1))).astype(np.float32)
    cosines, owned = rng.uniform(-1, 1, 50).astype(np.float32), (rng.random(50) < 0.5).astype(np.float32)
    cosines[0], owned[0], cosines[1], owned[1] = math.nan, 0, 1.0, 1
    gradients = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (7,))]
    measures = measure(features, (cosines, owned), gradients)
    norms = [math.sqrt(sum(float(number) ** 2 for number in row)) for row in features]
    counted = [float(cosine) for cosine, own in zip(cosines, owned) if own]
    total = math.sqrt(sum(float(number) ** 2 for gradient in gradients for number in gradient.reshape(-1)))
    assert measures.scalars["feature_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    assert measures.scalars["target_cosine"] == pytest.approx(sum(counted) / len(counted), abs=1e-6)
    assert measures.scalars["grad_norm"] == pytest.approx(total, rel=1e-5)
    assert list(measures.histograms["feature_norm"].counts) == binned(np.float32(norms), NORM_EDGES)
    assert list(measures.histograms["target_cosine"].counts) == binned(np.float32(counted), COSINE_EDGES)
    assert sum(measures.histograms["target_cosine"].counts) == len(counted)


def test_without_cosines_and_gradients_the_others_are_measured():
    scalars = measure(np.ones((4, D), np.float32), None).scalars
    assert scalars.keys() == {"images/s", "data_wait", "host_memory_gb", "feature_norm"}
    assert scalars["feature_norm"] == pytest.approx(math.sqrt(D)) and scalars["host_memory_gb"] > 0.01


@pytest.mark.parametrize("images", [2, 37, 300])
def test_the_cosine_between_classes_is_that_of_a_loop_over_pairs(images, monkeypatch):
    """Of the first images of the rank; of classes that are all the same there is none."""
    monkeypatch.setattr("plsc.engine.figures.PAIRED_IMAGES", 40)
    rng = np.random.default_rng(images)
    features = (rng.standard_normal((images, D)) + 1).astype(np.float32)
    labels = np.arange(images) % 3
    found = measure(features, None, labels=labels).scalars["class_cosine"]
    rows = features[:40].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [(n, m) for n in range(len(rows)) for m in range(len(rows)) if labels[n] != labels[m]]
    assert found == pytest.approx(sum(float(rows[n] @ rows[m]) for n, m in pairs) / len(pairs), abs=1e-6)
    assert "class_cosine" not in measure(features, None).scalars


def test_features_that_are_all_the_same_have_collapsed_and_those_at_right_angles_have_not():
    same, labels = np.ones((6, D), np.float32), np.arange(6) // 2
    assert measure(same, None, labels=labels).scalars["class_cosine"] == pytest.approx(1.0)
    apart = np.eye(D, dtype=np.float32)[labels]
    assert measure(apart, None, labels=labels).scalars["class_cosine"] == pytest.approx(0.0, abs=1e-6)
    assert measure(np.zeros((6, D), np.float32), None, labels=labels).scalars["class_cosine"] == 0.0


def test_a_histogram_tells_its_occupied_bins():
    histogram = from_counts_above((0.0, 1.0, 2.0, 3.0), [5.0, 2.0], 5.0)
    assert histogram == Histogram((0.0, 1.0, 2.0, 3.0), (0, 3, 2))
    assert histogram.occupied() == [[1.0, 2.0, 3], [2.0, 3.0, 2]]


LOSSES = {
    "by default": {},
    "on one rank": {"loss_type": "arcface"},
    "sampled": {"loss_type": "dist_cosface", "sample_ratio": 0.3},
    "sub-centers": {"subcenters": 3},
    "binary": {"loss_type": "dist_sphereface2"},
    "unfused": {
        "optimizer": lambda learning_rate, parameters: paddle.optimizer.Adam(learning_rate, parameters=parameters)
    },
}


@pytest.mark.parametrize("settings", LOSSES.values(), ids=list(LOSSES))
def test_target_cosines_are_those_of_features_and_centers(settings):
    rng = np.random.default_rng(0)
    config = Config(num_classes=C, emb_dim=D, **settings)
    head = Classifier(config, Collectives(), make_optimizer=lambda own: NamedOptimizer(config, own, of_centers=True))
    features, labels = rng.standard_normal((9, D)).astype(np.float32), rng.integers(0, C, 9)
    head.forward(paddle.to_tensor(features), paddle.to_tensor(labels))
    cosines, weights = head.target_cosines()
    centers = head.parameters["weight"].numpy().astype(np.float64).reshape([C, -1, D])
    for place, (x, label) in enumerate(zip(features.astype(np.float64), labels)):
        own = [x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in centers[label]]
        assert float(cosines[place]) == pytest.approx(max(own), abs=1e-5)
    assert weights.numpy().tolist() == [1.0] * 9


def test_softmax_has_no_cosines():
    config = Config(num_classes=C, emb_dim=D, loss_type="dist_softmax")
    head = Classifier(config, Collectives(), make_optimizer=lambda own: NamedOptimizer(config, own, of_centers=True))
    head.forward(paddle.ones([2, D]), paddle.to_tensor([0, 1]))
    assert head.target_cosines() is None


class Kept(Observer):
    """Keeps the measures of each step."""

    def __init__(self):
        self.steps = []

    def on_step(self, step):
        self.steps.append((step.number, dict(step.measures.scalars)))


def test_only_logged_steps_are_measured(entry):
    entry.set_train_epochs(2)
    entry.set_log_period(4)
    kept = Kept()
    entry.add_observer(kept)
    entry.train()
    assert [number for number, scalars in kept.steps if scalars] == [4, 6]
    assert all(0 <= scalars["data_wait"] <= 1 and scalars["images/s"] > 0 for _, scalars in kept.steps if scalars)


def test_logging_changes_no_number(entry, tmp_path):
    """The same loss and the same weights, to the bit, whether each step is logged or none but the last."""
    found = []
    for period in (1, 200):
        entry.set_log_period(period)
        entry.set_model_save_dir(tmp_path / str(period))
        found.append((entry.train()["loss"], (tmp_path / str(period) / "0" / "model.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_measures_are_read_once():
    calls = []
    measures = Measures(lambda: calls.append(1) or Measures()._measured)
    assert measures.scalars == {} and measures.histograms == {} and calls == [1]


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_measure_what_one_rank_measures(ranks, tmp_path):
    lines = {}
    for count in (1, ranks):
        settings = {
            "model": "plain",
            "num_workers": 0,
            "model_save_dir": str(tmp_path / str(count)),
            "train_batch_size": 12 // count,
            "train_epochs": None,
            "train_steps": 3,
            "log_period": 1,
        }
        launch(count, "train_worker.py", json.dumps(settings), log_dir=tmp_path / f"log{count}")
        text = (tmp_path / str(count) / "metrics.jsonl").read_text()
        lines[count] = [line for line in map(json.loads, text.splitlines()) if line["event"] == "step"]
    for alone, shared in zip(lines[1], lines[ranks]):
        for name in ("loss", "grad_norm", "target_cosine", "feature_norm"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), name
        for name in ("target_cosine", "feature_norm"):
            counts = [sum(row[2] for row in line["histograms"][name]) for line in (alone, shared)]
            assert counts == [12, 12]

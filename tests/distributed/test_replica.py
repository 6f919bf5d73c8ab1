"""Copies of a network on ranks: they begin alike, and have the mean of the gradients."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests._support.ranks import launch


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.cpu("DataParallel gives no gradient where this rank has not used the parameter; see docs/gpu.md")
def test_replicas_begin_alike_and_have_the_mean_gradient(tmp_path):
    _, output = launch(2, "replica_worker.py", log_dir=tmp_path)
    logs = output.partition("\n== workerlog.0")[2]
    lines = [json.loads(line.split(" ", 1)[1]) for line in logs.splitlines() if line.startswith("GRADIENTS")]
    assert len(lines) == 2 and lines[0] == lines[1]
    gradients, _, mean = lines[0]
    assert mean == [0.0, 0.0]
    sums = [np.random.default_rng(rank).normal(size=(4, 3)).astype(np.float32).sum(0) for rank in range(2)]
    np.testing.assert_allclose(gradients["a.weight"], np.repeat((sums[0] + sums[1])[:, None] / 2, 2, 1), rtol=1e-5)
    np.testing.assert_allclose(gradients["b.weight"], np.repeat(sums[1][:, None] / 2, 2, 1), rtol=1e-5)
    assert gradients["c.weight"] is False

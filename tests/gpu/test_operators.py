"""The list of what the GPU path calls is complete: see tests/gpu/operators.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests._support import fake_gpu
from tests._support.ranks import ROOT, WORKERS
from tests.gpu.operators import PAGE, names_called, names_in, page, table

HALVES = {"float16", "bfloat16"}


def test_every_name_of_paddle_is_listed_and_no_other():
    listed = {row["name"] for row in table("calls.tsv")}
    unlisted = {name: sorted(files) for name, files in names_called().items() if name not in listed}
    assert not unlisted, "look the kernels up, add rows to tests/gpu/calls.tsv and kernels.tsv"
    assert not listed - set(names_called()), "remove these rows"


def test_every_call_names_a_kernel_that_is_listed():
    kernels = {row["counted as"] for row in table("kernels.tsv")}
    for row in table("calls.tsv"):
        assert row["counted as"] in kernels | {""}, row
        assert row["counted as"] or "operator" not in row["kind"], row


def test_names_are_found_behind_local_ones():
    source = "import paddle\nimport paddle.distributed as dist\nfrom paddle import nn\n_C = paddle._C_ops\n"
    source += "a = _C.exp_\nb = dist.stream.all_gather(nn.Linear(paddle.ones([2]).sum()))\n"
    found = names_in(source)
    assert {"paddle._C_ops.exp_", "paddle.distributed.stream.all_gather", "paddle.nn.Linear"} <= found
    assert "paddle.ones" in found


@pytest.fixture(scope="module")
def called():
    """What trainings under the plugin call: {"kernels": {name: types}, "gradients": names}."""
    command = [sys.executable, fake_gpu.__file__, str(WORKERS / "kernels_worker.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env={**os.environ})
    lines = [line for line in done.stdout.splitlines() if line.startswith("KERNELS ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("KERNELS "))


@pytest.mark.slow
def test_every_kernel_that_training_calls_is_listed_with_its_types(called):
    listed = {row["counted as"]: row["types registered for GPUs"] for row in table("kernels.tsv")}
    assert set(called["kernels"]["matmul_v2"]) > HALVES
    missing = []
    for name, kinds in called["kernels"].items():
        if name not in listed:
            missing.append(name)
        elif listed[name] not in ("all", "not read", "not found"):
            missing += [f"{name} of {kind}" for kind in kinds if kind != "other" and kind not in listed[name].split()]
    assert not missing
    of_names = {row["counted as"] for row in table("calls.tsv")}
    assert not set(listed) - of_names - set(called["kernels"]) - set(called["gradients"]), "remove these rows"


@pytest.mark.slow
def test_every_gradient_is_listed(called):
    nodes = set(called["gradients"]) - {"GradNodeAccumulation"}
    assert "Conv2dGradNodeFinal" in nodes and nodes <= {row["counted as"] for row in table("kernels.tsv")}


def test_the_page_has_the_tables():
    assert PAGE.read_text() == page(), "run python -m tests.gpu.operators"

"""Which device each predictor process takes: GPUs in turn, from the setting to the process."""

from __future__ import annotations

import asyncio

import paddle
import pytest

from plsc.errors import ServingError
from plsc.serving import pool, worker
from plsc.serving.devices import device_of
from plsc.serving.settings import ServeSettings


@pytest.mark.parametrize(
    "devices, gpus, taken",
    [
        (None, 0, ["cpu"] * 5),
        (None, 2, ["gpu:0", "gpu:1", "gpu:0", "gpu:1", "gpu:0"]),
        ("gpu", 3, ["gpu:0", "gpu:1", "gpu:2", "gpu:0", "gpu:1"]),
        ("cpu", 3, ["cpu"] * 5),
        ("gpu:1", 2, ["gpu:1"] * 5),
        ("gpu:2,0", 4, ["gpu:2", "gpu:0", "gpu:2", "gpu:0", "gpu:2"]),
    ],
)
def test_processes_take_gpus_in_turn(devices, gpus, taken):
    assert [device_of(number, devices, gpus=gpus) for number in range(5)] == taken


@pytest.mark.parametrize("devices, gpus", [("gpu", 0), ("gpu:1", 1), ("gpu:0,3", 3)])
def test_gpus_that_are_not_there_are_refused(devices, gpus):
    with pytest.raises(ServingError, match=rf"^devices: got '{devices}', but Paddle finds {gpus} GPUs? here; correct"):
        device_of(0, devices, gpus=gpus)


@pytest.mark.parametrize("devices", ["", "gpus", "gpu:", "gpu:0,", "gpu:a", "cuda:0", "cpu:0"])
def test_another_form_is_refused(devices):
    with pytest.raises(ServingError, match="^devices: got .* expected cpu, gpu, or GPUs by index as gpu:0,2"):
        ServeSettings(model="m", devices=devices)


def test_each_process_is_told_its_number_and_the_setting(monkeypatch):
    """The number stays where a process is replaced."""
    started = []

    async def start(*command, **options):
        started.append(command[-2:])
        raise OSError(8, "not started")

    monkeypatch.setattr(pool.asyncio, "create_subprocess_exec", start)
    for devices in (None, "gpu:0,2"):
        made = pool.PredictorPool(ServeSettings(model="m", workers=3, devices=devices), "fingerprint")
        with pytest.raises(ServingError, match="cannot be started: not started"):
            asyncio.run(made.start())
    assert started == [("0", ""), ("1", ""), ("2", ""), ("0", "gpu:0,2"), ("1", "gpu:0,2"), ("2", "gpu:0,2")]


def test_a_process_has_paddle_compute_on_its_device(monkeypatch):
    set_to = []
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(paddle, "set_device", set_to.append)
    for number in range(3):
        worker.choose_device(number, None)
    assert set_to == ["gpu:0", "gpu:1", "gpu:0"]

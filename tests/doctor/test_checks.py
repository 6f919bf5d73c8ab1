"""Each check at its borders, on machines that are made up, and all of them on this one."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from plsc.cli.doctor import FAULT_STATUS
from plsc.cli.main import app
from plsc.doctor import basics, devices, machine, ranks, storage
from plsc.doctor.children import Child
from plsc.doctor.findings import CHECKS, RegisteredCheck, Request, fault, ok
from plsc.doctor.paddle_facts import Device, Facts
from tests._support.ranks import ROOT

CARD = Device("NVIDIA H100", 80 << 30, (9, 0))


def facts(*cards, **changes):
    cuda = {"cuda": "12.6", "cudnn": "9.5", "nccl": "2.25"} if cards or changes.get("cuda") else {}
    known = {"version": "3.3.1", "commit": "7688495538f4", "cuda": None, "cudnn": None, "nccl": None}
    known |= {"device": "gpu:0" if cards else "cpu", "deviation": 1e-6, "rate": 4e10, **cuda, **changes}
    return Facts(devices=list(cards), **known)


def request(found=None, child=None, **given):
    return Request(paddle=SimpleNamespace(found=found, child=child), **given)


def states(check, *arguments):
    return [each.state for each in check(*arguments)]


def one(check, *arguments):
    (found,) = check(*arguments)
    return found


# What every run needs


@pytest.mark.parametrize(
    "system, version, state", [("Linux", (3, 13), "ok"), ("Linux", (3, 14), "warning"), ("Darwin", (3, 13), "warning")]
)
def test_the_python_and_its_system(monkeypatch, system, version, state):
    monkeypatch.setattr(basics.platform, "system", lambda: system)
    monkeypatch.setattr(basics, "sys", SimpleNamespace(version_info=(*version, 0)))
    assert states(basics.python, request()) == [state]


def test_a_paddle_that_cannot_be_used_is_a_fault_with_its_reason():
    found = one(basics.paddle, request(child=Child(-4, "", "loading\n")))
    assert found.state == "fault" and "it was ended by SIGILL" in found.seen and "pip install" in found.cure


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ["ok", "ok"]),
        ({"version": "3.4.0"}, ["warning", "ok"]),
        ({"version": "0.0.0"}, ["ok", "ok"]),  # built from source
        ({"deviation": 1.1e-4}, ["ok", "fault"]),
        ({"deviation": 0.9e-4}, ["ok", "ok"]),
        ({"deviation": math.nan}, ["ok", "fault"]),
        ({"rate": 4.9e9}, ["ok", "warning"]),
        ({"rate": 5.1e9}, ["ok", "ok"]),
    ],
)
def test_the_release_of_paddle_and_a_product_of_matrices(changes, expected):
    assert states(basics.paddle, request(facts(**changes))) == expected


def test_two_packages_of_opencv_are_one_too_many(monkeypatch):
    versions = {"opencv-python": None, "opencv-python-headless": "4.12"}
    monkeypatch.setattr(basics, "_version_of", lambda name: versions.get(name, "1.0"))
    assert states(basics.packages, request()) == ["ok"]
    versions["opencv-python"] = "4.11"
    assert states(basics.packages, request()) == ["ok", "warning"]


def test_a_decoder_that_is_missing_is_a_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    found = one(basics.decoding, request())
    assert found.state == "fault" and "simplejpeg" in found.seen and "simplejpeg" in found.cure


def test_decoders_that_differ_are_a_fault(monkeypatch):
    assert states(basics.decoding, request()) == ["ok"]
    monkeypatch.setattr("plsc.data.jpeg.decode_jpeg", lambda image: np.zeros((112, 112, 3), np.uint8))
    assert "different pixels" in one(basics.decoding, request()).seen


# Devices


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Makes what the driver of NVIDIA says: its version, and so many cards."""

    def make(version, cards=0):
        folder = tmp_path / "nvidia"
        (folder / "gpus").mkdir(parents=True)
        (folder / "version").write_text(
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\nGCC version: 12.2.0\n"
        )
        for card in range(cards):
            (folder / "gpus" / f"0000:0{card}").mkdir()

    monkeypatch.setattr(devices, "DRIVER", tmp_path / "nvidia")
    return make


def test_a_machine_without_a_gpu(driver):
    assert one(devices.devices, request(facts())).seen == "no GPU: Paddle computes on the CPU"
    assert states(devices.driver, request(facts())) == []


def test_gpus_are_listed(driver):
    driver("560.35.03", cards=2)
    found = list(devices.devices(request(facts(CARD, CARD))))
    assert [each.state for each in found] == ["ok", "ok"]
    assert found[1].seen == "gpu:1: NVIDIA H100, 80 GiB, compute capability 9.0"
    old = Device("Tesla V100", 16 << 30, (7, 5))
    assert states(devices.devices, request(facts(CARD, old))) == ["ok", "ok", "warning"]
    assert states(devices.devices, request(facts(old._replace(capability=(8, 0))))) == ["ok"]


def test_a_gpu_that_a_build_for_cpus_does_not_use(driver):
    driver("560.35.03", cards=1)
    found = one(devices.devices, request(facts()))
    assert found.state == "warning" and "1 GPU, and Paddle is a build for CPUs" in found.seen


def test_a_build_for_gpus_that_finds_none(driver):
    assert states(devices.devices, request(facts(cuda="12.6"))) == ["warning"]
    assert "no driver" in one(devices.driver, request(facts(cuda="12.6"))).seen


@pytest.mark.parametrize(
    "cuda, version, state",
    [
        ("12.6", "525.60.13", "ok"),
        ("12.6", "524.99", "fault"),
        ("11.8", "450.80.02", "ok"),
        ("13.0", "579.1", "fault"),
        (None, "300.1", "ok"),
    ],
)
def test_the_driver_must_be_new_enough_for_cuda(driver, cuda, version, state):
    driver(version)
    found = one(devices.driver, request(facts(cuda=cuda)))
    assert found.state == state and version in found.seen


# Ranks


def answered(right=True):
    told = {"right": right, "device": "cpu", "bytes": 4 << 20, "seconds": 0.02}
    return Child(0, json.dumps(told), "")


@pytest.mark.parametrize(
    "children, state, words",
    [
        ([answered(), answered()], "ok", "4 MiB in 20.0 ms, the sum is right"),
        ([answered(), answered(right=False)], "fault", "the sum is wrong"),
        ([answered(), Child(None, "", "waits\n")], "fault", "rank 1: it did not end in time"),
        ([Child(1, "", "refused\n"), Child(1, "", "closed\n")], "fault", "rank 0: refused; rank 1: closed"),
    ],
)
def test_all_reduce(monkeypatch, children, state, words):
    monkeypatch.setattr(ranks, "_run_ranks", lambda *, on_gpus: children)
    found = one(ranks.all_reduce, request(facts()))
    assert found.state == state and words in found.seen


@pytest.mark.parametrize(
    "cards, on_gpus, words", [(0, False, "Gloo"), (1, False, "NCCL needs two"), (2, True, "NCCL on")]
)
def test_nccl_is_tried_on_two_gpus(monkeypatch, cards, on_gpus, words):
    asked = []
    monkeypatch.setattr(ranks, "_run_ranks", lambda *, on_gpus: asked.append(on_gpus) or [answered(), answered()])
    assert words in one(ranks.all_reduce, request(facts(*[CARD] * cards))).seen
    assert asked == [on_gpus]


def test_a_name_without_an_address_is_told(monkeypatch):
    assert states(ranks.host_name, request()) == ["ok"]

    def fail(*arguments):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(ranks.socket, "getaddrinfo", fail)
    assert "Name or service not known" in one(ranks.host_name, request()).seen


def test_ranks_see_no_launcher_of_this_process(monkeypatch):
    environments = []
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "8")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setattr(ranks, "run_children", lambda commands, **given: environments.extend(given["environments"]))
    ranks._run_ranks(on_gpus=False)
    first, second = environments
    assert first["PADDLE_TRAINERS_NUM"] == second["PADDLE_TRAINERS_NUM"] == "2" and "MASTER_ADDR" not in first
    assert first["PADDLE_TRAINER_ENDPOINTS"] == second["PADDLE_TRAINER_ENDPOINTS"]
    assert first["PADDLE_CURRENT_ENDPOINT"] != second["PADDLE_CURRENT_ENDPOINT"]
    assert all(each["PADDLE_MASTER"].startswith("127.0.0.1:") for each in environments)


# The machine


@pytest.mark.parametrize(
    "user, usable, quota, state",
    [
        (None, 8, math.inf, "ok"),
        (None, 1, math.inf, "warning"),
        (None, 2, 1.5, "ok"),
        ("OMP_NUM_THREADS=8", 8, math.inf, "ok"),
        ("OMP_NUM_THREADS=9", 8, math.inf, "warning"),
        ("OMP_NUM_THREADS=7", 8, math.inf, "warning"),
        ("OMP_NUM_THREADS=4,2", 8, math.inf, "ok"),
    ],
)
def test_cores_and_threads(monkeypatch, user, usable, quota, state):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine, "usable_cores", lambda: usable)
    monkeypatch.setattr(machine, "core_quota", lambda: quota)
    monkeypatch.setattr(machine, "threads_of_user", lambda launcher: user)
    found = one(machine.cores, request())
    assert found.state == state
    assert ("control group leaves 1.5" in found.seen) == (quota == 1.5)
    assert ("by the affinity" in found.seen) == (usable == 1)


@pytest.mark.parametrize(
    "left, own, state",
    [
        (int(4.1e9), 1 << 60, "ok"),
        (int(3.9e9), 1 << 60, "warning"),
        (int(0.9e9), 1 << 60, "fault"),
        (int(9e9), int(0.9e9), "fault"),
        (0, 1 << 60, "warning"),
    ],
)
def test_memory(monkeypatch, left, own, state):
    monkeypatch.setattr(machine, "shared_memory", lambda: left)
    monkeypatch.setattr(machine, "process_memory", lambda: own)
    assert one(machine.memory, request()).state == state


@pytest.mark.parametrize(
    "room, cards, state", [((1 << 30) - 4096, 2, "warning"), (1 << 30, 2, "ok"), (64 << 20, 1, "ok")]
)
def test_shared_memory_counts_with_several_gpus(monkeypatch, room, cards, state):
    size = SimpleNamespace(f_frsize=4096, f_bavail=room // 4096, f_blocks=1 << 20)
    monkeypatch.setattr(machine.os, "statvfs", lambda path: size)
    assert one(machine.shared, request(facts(*[CARD] * cards))).state == state


def test_shared_memory_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SHARED", tmp_path / "none")
    assert one(machine.shared, request(facts(CARD, CARD))).state == "warning"


@pytest.mark.parametrize("limit, state", [(1024, "ok"), (1023, "warning"), (255, "fault"), (-1, "ok")])
def test_open_files(monkeypatch, limit, state):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda kind: (limit, -1))
    assert one(machine.open_files, request()).state == state


# The save folder and the data


def test_the_save_folder_is_measured_and_left_as_it_was(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b"):
        found = one(storage.save_folder, request(save_dir=folder))
        assert found.state in ("ok", "warning") and "a second" in found.seen
        assert ("not there yet" in found.seen) == (folder != tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_BLOCK", 1000)
    assert storage._write(tmp_path, most=5500)[0] == 5000
    assert storage._write(tmp_path, most=10)[0] == 10
    monkeypatch.setattr(storage, "_MOST_SECONDS", 0.0)
    assert storage._write(tmp_path, most=5500)[0] == 1000


@pytest.mark.parametrize(
    "free, speed, state",
    [
        (5.1e9, 51e6, "ok"),
        (5.1e9, 49e6, "warning"),
        (4.9e9, 51e6, "warning"),
        (0.19e9, 51e6, "fault"),
    ],
)
def test_the_space_and_speed_of_the_save_folder(monkeypatch, tmp_path, free, speed, state):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda place: SimpleNamespace(free=int(free)))
    monkeypatch.setattr(storage, "_write", lambda place, *, most: (int(speed), 1.0))
    assert one(storage.save_folder, request(save_dir=tmp_path)).state == state


def test_a_save_folder_that_takes_no_file_is_a_fault(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert one(storage.save_folder, request(save_dir=tmp_path / "file")).state == "fault"
    assert one(storage.save_folder, request(save_dir=tmp_path / "file" / "x")).state == "fault"

    def fail(place, *, most):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "_write", fail)
    found = one(storage.save_folder, request(save_dir=tmp_path))
    assert found.state == "fault" and "Permission denied" in found.seen


def test_remote_folders_are_not_measured():
    assert "not measured" in one(storage.save_folder, request(save_dir="s3://bucket/run")).seen
    assert "not read here" in one(storage.training_data, request(dataset_dir="s3://bucket/faces")).seen


def test_data_is_read_and_decoded(data_dir):
    found = one(storage.training_data, request(dataset_dir=str(data_dir)))
    assert found.state == "ok" and "30 images (list of images)" in found.seen
    assert states(storage.training_data, request()) == []


def test_damaged_images_are_a_fault(data_dir):
    for path in sorted((data_dir / "images").iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:40])
    damaged, speed = storage.training_data(request(dataset_dir=str(data_dir)))
    assert damaged.state == "fault" and damaged.seen.startswith("2 of 30 images cannot be read; the first: ")
    assert speed.state == "ok"


def test_data_that_cannot_be_opened_is_a_fault(tmp_path):
    found = one(storage.training_data, request(dataset_dir=str(tmp_path / "none")))
    assert found.state == "fault" and "cannot be opened" in found.seen


@pytest.mark.parametrize("limit, state", [(0.0, "ok"), (1e12, "warning")])
def test_slow_data_is_told(monkeypatch, data_dir, limit, state):
    monkeypatch.setattr(storage, "_SLOW_READING", limit)
    found = one(storage.training_data, request(dataset_dir=str(data_dir)))
    assert found.state == state


def test_reading_is_bounded(monkeypatch, data_dir):
    monkeypatch.setattr(storage, "_READ_SECONDS", 0.0)
    read = []
    monkeypatch.setattr("plsc.data.images.decode", lambda image: read.append(image))
    list(storage.training_data(request(dataset_dir=str(data_dir))))
    assert len(read) == 1


# The command


def test_the_command_examines_this_machine(tmp_path, data_dir):
    """Two real ranks, and all other checks: each gives a finding or has nothing to say."""
    arguments = ["doctor", "--json", "--save-dir", str(tmp_path / "output"), "--dataset-dir", str(data_dir)]
    done = CliRunner().invoke(app, arguments)
    told = json.loads(done.stdout)
    failed = [each for each in told["findings"] if "the check" in each["seen"]]
    assert not failed, failed
    names = [each["check"] for each in told["findings"]]
    assert set(names) == {each.name for each in CHECKS} - ({"driver"} if not devices.DRIVER.exists() else set())
    reduced = next(each for each in told["findings"] if each["check"] == "all-reduce")
    assert reduced["state"] == "ok", reduced
    assert done.exit_code == (FAULT_STATUS if told["state"] == "fault" else 0)
    assert not (tmp_path / "output").exists()


def test_a_paddle_that_crashes_does_not_end_the_command(tmp_path):
    """Its process is ended by a signal. What does not need Paddle is examined all the same."""
    (tmp_path / "paddle").mkdir()
    (tmp_path / "paddle" / "__init__.py").write_text("import os\nos.abort()\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "plsc", "doctor", "--json", "--save-dir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert done.returncode == FAULT_STATUS and done.stderr == ""
    assert found["paddle"]["state"] == "fault" and "ended by SIGABRT" in found["paddle"]["seen"]
    assert {"cores", "memory", "image decoding", "save folder"} <= found.keys()


@pytest.mark.parametrize("made, status", [(ok("a"), 0), (fault("b", means="m", cure="c"), FAULT_STATUS)])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_exit_status(monkeypatch, made, status, flags):
    checks = [RegisteredCheck("example", lambda request: [made], 5.0)]
    monkeypatch.setattr("plsc.doctor.examination.examine.__defaults__", (checks,))
    done = CliRunner().invoke(app, ["doctor", *flags])
    assert done.exit_code == status and made.seen in done.stdout


def test_a_report_names_neither_home_nor_environment(monkeypatch, tmp_path):
    home = tmp_path / "alice"
    shutil.copytree(os.path.dirname(__file__), home / "data", ignore=lambda *_: ["__pycache__"])
    cv2.imwrite(str(home / "data" / "x.png"), np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PLSC_API_KEY", "a-secret")
    checks = [each for each in CHECKS if each.name in ("packages", "cores", "save folder", "training data")]
    monkeypatch.setattr("plsc.doctor.examination.examine.__defaults__", (checks,))
    arguments = ["doctor", "--json", "--save-dir", str(home / "run"), "--dataset-dir", str(home / "data")]
    text = CliRunner().invoke(app, arguments).stdout
    assert str(home) not in text and "a-secret" not in text and "~/run" in text

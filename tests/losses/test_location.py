"""Class centers in mapped files and in host memory: the same bits, no anonymous memory, nothing left on the disk."""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from plsc import ConfigError
from plsc.config import Config
from plsc.distributed.collectives import Collectives
from plsc.engine.optimizer import NamedOptimizer
from plsc.losses import location as locations
from plsc.losses.classifier import Classifier
from plsc.losses.host_rows import HostRows
from plsc.losses.location import Location, MappedFiles, page_ranges
from plsc.losses.row_optimizers import AdamW, Lars, Momentum
from plsc.losses.sampled import SampledShard
from plsc.losses.shard import Shard
from plsc.losses.storage import new_state
from plsc.utils.ranges import Range
from tests._support.ranks import WORKERS, run
from tests._support.storage_problems import gradient_of

CLASSES, WIDTH = 60, 8
STORAGES = {
    "float32": {},
    "bfloat16": {"center_storage": "bfloat16", "momentum_storage": "bfloat16"},
    "int8": {"center_storage": "bfloat16", "momentum_storage": "int8"},
    "adamw": {"optimizer": "adamw", "momentum_storage": "int8"},
}


def make_head(**settings):
    config = Config(**{"num_classes": CLASSES, "emb_dim": WIDTH, "lr": 0.1, "loss_type": "dist_arcface", **settings})
    return Classifier(
        config,
        Collectives(),
        make_optimizer=lambda own: NamedOptimizer(config, own, of_centers=True),
        class_counts=lambda: np.arange(1, config.num_classes + 1),
    )


def step(head, number):
    random = np.random.default_rng(number)
    features = paddle.to_tensor(random.standard_normal((6, head.parameters["weight"].shape[-1])).astype(np.float32))
    labels = paddle.to_tensor(random.integers(0, head.classes.size, 6))
    loss = head.forward(features, labels, step=number, count_above=True)
    gradient, accuracy = head.backward(), head.accuracy()["acc5"].item()
    head.update(0.1)
    return loss.item(), accuracy, gradient.numpy().tobytes()


def bits(head):
    return {name: value.numpy().tobytes() for name, value in head.state().items()}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("loss_type, subcenters", [("dist_arcface", 1), ("dist_cosface", 3), ("dist_softmax", 1)])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_head_computes_the_same_bits_anywhere(where, storage, ratio, loss_type, subcenters, tmp_path):
    settings = {"loss_type": loss_type, "subcenters": subcenters, "sample_ratio": ratio, **STORAGES[storage]}
    here, there = make_head(**settings), make_head(center_location=where, center_dir=str(tmp_path), **settings)
    assert bits(there) == bits(here)  # and `state` between steps changes nothing
    for number in range(4):
        assert step(there, number) == step(here, number)
        if number == 1:
            there.discard()
            assert bits(there) == bits(here)
    assert bits(there) == bits(here)
    assert not list(tmp_path.iterdir())


class ApartMemory(Location):
    """Memory that the device of the steps does not work on: all lies on the CPU, and rows travel all the same."""

    is_apart = True


def shard_at(location, weight, *, optimizer, centers, state):
    kept = paddle.to_tensor(weight).astype(centers)
    names = {f"weight:{kind}": kind for kind in optimizer.state_names}
    made = {name: new_state(optimizer, kind, kept, storage=state, location=location) for name, kind in names.items()}
    return Shard(kept, optimizer, state=made, state_storage=state, seed=3, location=location)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("optimizer", [Momentum(), AdamW(), Lars()], ids=["momentum", "adamw", "lars"])
@pytest.mark.parametrize("ratio", [1.0, 0.4])
@pytest.mark.parametrize("centers, state", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "int8")])
def test_rows_that_travel_come_back_with_the_same_bits(centers, state, ratio, optimizer, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((CLASSES, WIDTH)).astype(np.float32)
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", paddle.CPUPlace)
    travels = {"take": 0, "give": 0}
    for name in travels:
        real = getattr(HostRows, name)

        def count(self, *arguments, _name=name, _real=real, **named):
            travels[_name] += 1
            return _real(self, *arguments, **named)

        monkeypatch.setattr(HostRows, name, count)
    kept = []
    for location in (Location(), ApartMemory()):
        full = shard_at(location, weight, optimizer=optimizer, centers=centers, state=state)
        used = full if ratio == 1.0 else SampledShard(full, ratio=ratio, samples=2)
        for number in range(3):
            if ratio < 1.0:
                used.draw(paddle.to_tensor([3, 17]), seed=number + 1)
            rows = np.arange(CLASSES) if ratio == 1.0 else used.rows.numpy()
            before = dict(travels)

            def gradients(rows=rows, number=number, used=used):
                for k, chunk in enumerate(used.chunks):
                    used.load_chunk(k)
                    for block in chunk.blocks:
                        own = rows[block.range.start : block.range.stop]
                        yield block, paddle.to_tensor(gradient_of(number, own, WIDTH))

            used.update(gradients(), learning_rate=0.1)
            if ratio < 1.0 and location.is_apart:  # one gather of each tensor with the draw, and one scatter
                tensors = len(full.stores_of("weight"))
                assert travels["give"] - before["give"] == tensors and travels["take"] == before["take"]
        kept.append([full.weight.numpy().tobytes(), *(each.numpy().tobytes() for each in full.state.values())])
    assert kept[0] == kept[1] and travels["take"] and travels["give"]


# Pages


@pytest.mark.parametrize("row_bytes", [12, 516, 1024, 4096, 6000, 20000])
def test_the_pages_of_rows_are_those_that_hold_their_bytes(row_bytes):
    random = np.random.default_rng(row_bytes)
    for count in (0, 1, 2, 40, 300):
        rows = np.sort(random.choice(400, count, replace=False))
        ranges = page_ranges(rows, row_bytes)
        pages = [page for first, stop in ranges for page in range(first // mmap.PAGESIZE, stop // mmap.PAGESIZE)]
        expected = {byte // mmap.PAGESIZE for row in rows for byte in range(row * row_bytes, (row + 1) * row_bytes)}
        assert pages == sorted(expected)
        assert all(stop < first for (_, stop), (first, _) in zip(ranges, ranges[1:]))
    assert page_ranges(Range(3, 9), row_bytes) == page_ranges(np.arange(3, 9), row_bytes)
    assert page_ranges(Range(4, 4), row_bytes) == []


class Asked(MappedFiles):
    """Notes the rows that are asked for."""

    def __init__(self, folder):
        super().__init__(folder)
        self.rows = []

    def expect(self, tensor, rows):
        super().expect(tensor, rows)
        self.rows.append(np.arange(rows.start, rows.stop) if isinstance(rows, Range) else rows.copy())


def draws(location, weight, labels, *, with_next, subcenters=1):
    kept = location.zeros([*weight.shape[:1], *([subcenters] if subcenters > 1 else []), weight.shape[-1]], "float32")
    full = Shard(kept, Momentum(), location=location)
    sampled, found = SampledShard(full, ratio=0.3, samples=4), []
    for number, own in enumerate(labels):
        location.rows = [] if isinstance(location, Asked) and not number else getattr(location, "rows", [])
        sampled.draw(paddle.to_tensor(own), seed=number + 1, next_seed=number + 2 if with_next else None)
        found.append(sampled.rows.numpy())
    return found, sampled


@pytest.mark.parametrize("subcenters", [1, 2])
def test_the_next_draw_is_asked_for_before_it_and_is_the_same(subcenters, tmp_path):
    weight = np.zeros((CLASSES, WIDTH), np.float32)
    labels = np.random.default_rng(1).integers(0, CLASSES, (5, 4))
    plain, _ = draws(Location(), weight, labels, with_next=False, subcenters=subcenters)
    asked = Asked(tmp_path)
    ahead, sampled = draws(asked, weight, labels, with_next=True, subcenters=subcenters)
    assert [rows.tolist() for rows in ahead] == [rows.tolist() for rows in plain]
    sampled._next.classes()  # so that the thread has ended
    # Of each of the two tensors: all rows of the first draw; then in turn those that are known of the next one, and
    # the positive ones that are not among them.
    first, *rest = asked.rows[::2]
    assert first.tolist() == plain[0].tolist()
    for begun, late, drawn, own in zip(rest[::2], rest[1::2], plain[1:], labels[1:]):
        assert set(drawn) <= {*begun, *late}
        positive = {row for label in own for row in range(label * subcenters, (label + 1) * subcenters)}
        assert set(late) <= positive and not set(late) & set(begun)
        assert len(begun) == len(drawn)


def test_the_system_is_told_what_comes(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        locations.os, "posix_fadvise", lambda number, first, size, advice: told.append((first, size, advice))
    )
    files = MappedFiles(tmp_path)
    tensor = files.zeros([4096, 8], "float32")  # 32 bytes a row, 128 rows a page
    files.expect(tensor, np.array([0, 1, 130, 1000]))
    assert told == [(0, 8192, os.POSIX_FADV_WILLNEED), (7 * 4096, 4096, os.POSIX_FADV_WILLNEED)]
    told.clear()
    files.expect(tensor.detach(), Range(128, 512))
    assert told == [(4096, 3 * 4096, os.POSIX_FADV_WILLNEED)]
    flags = {True: "rr", False: "sr"}  # as the kernel names them: random, sequential
    for is_random in (True, False, True):
        files.advise(is_random=is_random)
        found = flags_of(tensor)
        assert flags[is_random] in found and flags[not is_random] not in found


def flags_of(tensor):
    """The flags of the mapping that holds a tensor."""
    address, holds = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            holds = int(found[1], 16) <= address < int(found[2], 16)
        elif holds and line.startswith("VmFlags"):
            return line.split()[1:]
    raise AssertionError("no mapping holds the tensor")


@pytest.mark.usefixtures("small_chunks")
def test_a_whole_step_asks_for_the_next_chunk_and_in_an_update_for_its_state(tmp_path):
    asked = Asked(tmp_path)
    shard = Shard(asked.zeros([CLASSES, WIDTH], "float32"), Momentum(), location=asked)
    shard.squared_norms()
    assert [rows.tolist() for rows in asked.rows] == [list(range(k, min(k + 16, 60))) for k in (16, 32, 48)]
    asked.rows = []

    def gradients():
        for k, chunk in enumerate(shard.chunks):
            shard.load_chunk(k)
            yield from ((block, paddle.zeros([block.range.size, WIDTH])) for block in chunk.blocks)

    shard.update(gradients(), learning_rate=0.1)
    assert [rows.tolist() for rows in asked.rows] == [
        list(range(k, min(k + 16, 60))) for k in (16, 32, 48) for _ in range(2)
    ]


# What is left, and what memory holds


def scratch_files(folder):
    """The mappings and descriptors of files without a name in a folder."""
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/" in line]
    held = []
    for number in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # that of the listing itself
            continue
    return maps, [path for path in held if path.startswith(f"{folder}/")]


@pytest.mark.parametrize("has_nameless", [True, False])
def test_the_files_have_no_name_and_are_freed_with_the_head(has_nameless, tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *arguments, **named):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(path, flags, *arguments, **named)

    if not has_nameless:  # as on some file systems
        monkeypatch.setattr(locations.os, "open", refuse)
    head = make_head(center_location="disk", center_dir=str(tmp_path), sample_ratio=0.5)
    step(head, 0)
    maps, held = scratch_files(tmp_path)
    assert len(maps) == 2 and "(deleted)" in maps[0] and held
    assert not list(tmp_path.iterdir())
    del head
    gc.collect()
    assert scratch_files(tmp_path) == ([], [])


@pytest.mark.slow
@pytest.mark.cpu("counts the memory of a CPU")
@pytest.mark.parametrize("storage, ratio", [("float32", 1.0), ("int8", 0.1)])
def test_no_anonymous_memory_holds_the_shard(storage, ratio, tmp_path):
    """Neither when it is made, nor in steps, when it is saved and loaded; on the device it does."""
    settings = {"sample_ratio": ratio, "center_dir": str(tmp_path), **STORAGES[storage]}
    taken = {}
    for where in ("device", "disk"):
        given = json.dumps({"center_location": where, **settings})
        _, output = run([sys.executable, WORKERS / "location_worker.py", given])
        taken[where] = {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", output, re.MULTILINE)}
    size = taken["disk"].pop("size")
    assert taken["disk"]["init"] < 0.1 * size
    less = {name: taken["device"][name] - value for name, value in taken["disk"].items()}
    assert less.keys() == {"init", "step", "save", "load"} and min(less.values()) > 0.8 * size, (taken, size)


# What is refused


def clipped(**options):
    return paddle.optimizer.Momentum(momentum=0.9, grad_clip=paddle.nn.ClipGradByValue(1e9), **options)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"optimizer": clipped},
            r"set_center_location\('disk'\): needs centers that one rank holds alone .*; this run",
        ),
        (
            {"param_attr": paddle.ParamAttr(initializer=paddle.nn.initializer.Normal())},
            r"set_center_location\('disk'\) makes the first centers itself.*param_attr has an initializer",
        ),
        (
            {"center_storage": "bfloat16", "emb_dim": 9},
            r"set_center_storage\('bfloat16'\) and .*location\('disk'\): needs .* and an even embedding size; this run",
        ),
    ],
)
def test_what_cannot_work_is_refused(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        make_head(center_location="disk", center_dir=str(tmp_path), **settings)


def test_an_odd_embedding_size_is_fine_in_float32(tmp_path):
    assert step(make_head(center_location="disk", center_dir=str(tmp_path), emb_dim=9), 0)[0] > 0


@pytest.mark.cpu("on a GPU the unfused head is refused")
def test_on_a_cpu_host_is_device_for_any_head():
    assert step(make_head(center_location="host", optimizer=clipped), 0) == step(make_head(optimizer=clipped), 0)


def test_a_disk_without_space_is_named_with_what_is_needed_and_found(tmp_path, monkeypatch):
    monkeypatch.setattr(locations.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        ConfigError,
        match=rf"a file for \[60, 8\] of float32 takes 1.88 KiB, and {tmp_path} has 1000 bytes of free space; free "
        r"space there, or name another folder with .*set_center_dir",
    ):
        make_head(center_location="disk", center_dir=str(tmp_path))


@pytest.mark.parametrize("function", ["posix_fallocate", "mmap"])
def test_a_file_system_that_gives_no_mapped_file_is_named(function, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC if function == "posix_fallocate" else errno.ENODEV, "no")

    owner = locations.os if function == "posix_fallocate" else locations.mmap
    monkeypatch.setattr(owner, function, refuse)
    with pytest.raises(ConfigError, match=rf"{tmp_path} does not give a mapped file of that size: .*set_center_dir"):
        make_head(center_location="disk", center_dir=str(tmp_path))
    assert scratch_files(tmp_path) == ([], [])


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"none can be made in .*/file/centers: .*set_center_dir"):
        make_head(center_location="disk", center_dir=str(tmp_path / "file" / "centers"))


def test_a_rank_without_classes_needs_no_file(tmp_path):
    files = MappedFiles(tmp_path)
    tensor = files.zeros([0, 8], "bfloat16")
    files.expect(tensor, Range(0, 0))
    assert tensor.shape == [0, 8] and scratch_files(tmp_path) == ([], [])

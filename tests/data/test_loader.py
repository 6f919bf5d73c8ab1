"""Batches: seeded by epoch, disjoint over ranks, the same whatever the worker count."""

from __future__ import annotations

import importlib
import os
import pkgutil
import random

import numpy as np
import pytest

from plsc.data import sources
from plsc.data.loader import ReaderLoader, TrainLoader, balanced_order
from plsc.data.records import DatasetRecords, Records
from plsc.data.sources import open_records
from plsc.data.subset import SelectedRecords
from plsc.data.transforms import Transform, normalize
from plsc.errors import DataError
from tests._support.images import make_images

IMAGES, _ = make_images(classes=5, per_class=7)


class Numbered:
    """Images labeled with their own index."""

    num_classes = len(IMAGES)

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index], index


def loader(batch_size=4, flip=False, **options):
    return TrainLoader(
        DatasetRecords(Numbered()),
        Transform((3, 16, 16), flip),
        num_classes=len(IMAGES),
        batch_size=batch_size,
        **options,
    )


def labels(batches):
    return [batch.labels.tolist() for batch in batches]


@pytest.mark.parametrize("ranks, batch_size", [(1, 12), (2, 6), (3, 4), (4, 3)])
def test_ranks_share_the_global_batch_of_one_rank(ranks, batch_size):
    whole = labels(loader(12).epoch(3))
    shares = [labels(loader(batch_size, rank=rank, world_size=ranks).epoch(3)) for rank in range(ranks)]
    assert [sum(step, []) for step in zip(*shares)] == whole


def test_every_image_is_seen_every_epoch_and_at_most_a_batch_twice():
    seen = sum(labels(loader(4).epoch(0)), [])
    assert set(seen) == set(range(35))
    assert len(seen) == 36


def test_epochs_and_seeds_differ_and_repeat():
    assert labels(loader().epoch(0)) == labels(loader().epoch(0))
    assert labels(loader().epoch(0)) != labels(loader().epoch(1))
    assert labels(loader().epoch(0)) != labels(loader(seed=1).epoch(0))


@pytest.mark.parametrize("workers", [1, 3])
def test_worker_count_changes_nothing(workers):
    alone, shared = loader(flip=True), loader(flip=True, num_workers=workers)
    try:
        for epoch in (0, 1):
            for one, other in zip(alone.epoch(epoch), shared.epoch(epoch)):
                assert np.array_equal(one.images, other.images)
                assert np.array_equal(one.labels, other.labels)
    finally:
        shared.close()


def test_a_resumed_epoch_goes_on_at_the_exact_next_batch():
    assert labels(loader().epoch(2, first_step=5)) == labels(loader().epoch(2))[5:]


def test_flips_follow_the_seed_and_are_about_half():
    images = np.concatenate([batch.images for batch in loader(35, flip=True).epoch(0)])
    order = np.concatenate(labels(loader(35).epoch(0)))
    originals = [IMAGES[index].transpose(2, 0, 1) for index in order]
    flipped = [np.array_equal(image, original[..., ::-1]) for image, original in zip(images, originals)]
    plain = [np.array_equal(image, original) for image, original in zip(images, originals)]
    assert all(a != b for a, b in zip(flipped, plain))
    assert 5 < sum(flipped) < 30


class Dying(Numbered):
    def __getitem__(self, index):
        os._exit(1)


def test_a_worker_that_dies_is_an_error_not_a_hang():
    dying = TrainLoader(DatasetRecords(Dying()), Transform((3, 16, 16)), num_classes=35, batch_size=4, num_workers=1)
    with pytest.raises(DataError, match="died"):
        list(dying.epoch(0))


def test_an_empty_set_is_refused():
    with pytest.raises(DataError, match="is empty"):
        TrainLoader(DatasetRecords([]), Transform((3, 16, 16)), num_classes=1, batch_size=1)


def test_a_reader_keeps_its_own_batches_and_float_images():
    image = np.full((3, 16, 16), 0.5, np.float32)
    reader = ReaderLoader(lambda: iter([[(image, 1), (image.ravel(), [2])], [(image, 3)]]), (3, 16, 16), num_classes=4)
    batches = list(reader.epoch(0))
    assert labels(batches) == [[1, 2], [3]]
    assert batches[0].images.dtype == np.float32
    assert np.array_equal(normalize(batches[0].images), batches[0].images)
    assert labels(reader.epoch(1, first_step=1)) == [[3]]
    assert reader.count() == 3


def test_images_with_channels_last_are_not_scrambled():
    loader = ReaderLoader(lambda: iter([[(np.zeros((8, 8, 3), np.float32), 0)]]), (3, 8, 8), num_classes=5)
    with pytest.raises(DataError, match=r"expected a list of \(image \[3, 8, 8\].*got an image \[8, 8, 3\]"):
        list(loader.epoch(0))
    flat = ReaderLoader(lambda: iter([[(np.arange(192.0), [1])]]), (3, 8, 8), num_classes=5)
    assert next(flat.epoch(0)).images.reshape(-1).tolist() == list(range(192))


@pytest.mark.parametrize("sizes", [[1, 50, 9], [7, 7, 7], [1], [3, 1, 1, 1, 40]])
def test_a_balanced_order_gives_every_class_equal_turns(sizes):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    order = balanced_order(labels, np.random.default_rng(1))
    assert len(order) == len(labels)
    turns = np.bincount(labels[order], minlength=3 * len(sizes))[::3]
    assert turns.max() - turns.min() <= 1
    for number, size in enumerate(sizes):
        uses = np.bincount(order[labels[order] == 3 * number], minlength=len(labels))[labels == 3 * number]
        assert uses.max() - uses.min() <= 1, f"images of one class of {size} come equally often"
    assert not np.array_equal(order, balanced_order(labels, np.random.default_rng(2))) or len(labels) == 1


def test_a_source_has_as_many_labels_as_images():
    records = DatasetRecords(Numbered())
    records.labels = np.arange(5)
    with pytest.raises(DataError, match="data set Numbered: has 35 images and 5 labels, expected one each"):
        TrainLoader(records, Transform((3, 16, 16)), num_classes=35, batch_size=4, class_balanced=True)


@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 2}, {"class_balanced": True, "seed": 3}])
def test_an_image_of_a_batch_is_described(options):
    """For messages: by (epoch, step, row), also on other ranks and in other orders."""
    made = loader(**options)
    for epoch, first in ((0, 0), (2, 3)):
        for step, batch in enumerate(made.epoch(epoch, first), first):
            for row, label in enumerate(batch.labels):
                assert made.describe(epoch, step, row=row) == f"item {label} of Numbered"


def test_the_image_that_replaces_an_unreadable_one_is_described():
    class Holes(Numbered):
        def __getitem__(self, index):
            return (b"no image" if index % 3 == 0 else IMAGES[index]), index

    made = TrainLoader(
        DatasetRecords(Holes()), Transform((3, 16, 16)), num_classes=len(IMAGES), batch_size=5, skip_bad_images=True
    )
    for step, batch in enumerate(made.epoch(0)):
        for row, label in enumerate(batch.labels):
            assert made.describe(0, step, row=row) == f"item {label} of Holes"


class Drawing:
    """Labels that are drawn from global generators."""

    num_classes = 1 << 20

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return np.zeros((16, 16, 3), np.uint8), int(self.draw() * 2**20)


def draw_of_paddle():
    import paddle

    return float(paddle.rand([1]).numpy()[0])


@pytest.mark.parametrize(
    "draw", [lambda: np.random.rand(), random.random, draw_of_paddle], ids=["NumPy", "Python", "Paddle"]
)
def test_a_users_data_set_draws_other_numbers_for_each_image_whatever_the_workers(draw):
    if draw is draw_of_paddle:
        pytest.importorskip("paddle")
    found = []
    before = draw()
    state = draw()
    for workers in (0, 1, 2):
        batches = TrainLoader(
            DatasetRecords(Drawing(draw)),
            Transform((3, 16, 16)),
            num_classes=1 << 20,
            batch_size=4,
            num_workers=workers,
        )
        try:
            found.append([sum(labels(batches.epoch(epoch)), []) for epoch in (0, 1)])
        finally:
            batches.close()
    assert found[0] == found[1] == found[2]
    assert len(set(found[0][0] + found[0][1])) == 48
    assert len({before, state}) == 2


def test_the_generators_of_the_training_process_are_left_as_they_were():
    paddle = pytest.importorskip("paddle")

    def draws():
        return float(np.random.rand()), random.random(), float(paddle.rand([1]).numpy()[0])

    def seed():
        np.random.seed(1)
        random.seed(1)
        paddle.seed(1)

    seed()
    expected = draws()
    seed()
    batches = TrainLoader(
        DatasetRecords(Drawing(lambda: sum(draws()) / 3)), Transform((3, 16, 16)), num_classes=1 << 20, batch_size=4
    )
    list(batches.epoch(0))
    assert draws() == expected


def test_the_librarys_own_sources_are_not_seeded_for():
    assert DatasetRecords([]).uses_global_random
    records = open_records("synthetic:5:20")
    assert not records.uses_global_random and not SelectedRecords(records, [1, 2]).uses_global_random
    assert SelectedRecords(DatasetRecords(Numbered()), [1, 2]).uses_global_random


def test_all_sources_of_the_library_say_whether_they_draw():
    for module in pkgutil.iter_modules(sources.__path__, "plsc.data.sources."):
        found = vars(importlib.import_module(module.name)).values()
        for kind in found:
            if isinstance(kind, type) and issubclass(kind, Records) and kind.__module__ == module.name:
                assert not kind.uses_global_random, kind

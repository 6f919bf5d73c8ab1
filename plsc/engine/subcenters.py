"""A checkpoint with K sub-centers a class made to one with K = 1, as sub-center ArcFace cleans noisy data.

*Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces*, Deng et al., ECCV 2020: after some
epochs clean images of a class lie near one of its centers, the dominant one, and others near the other ones. Only the
dominant ones stay, and images at more than 75 degrees from theirs are left out of the training that follows.

Centers are read, and images embedded, in blocks of classes. Memory holds a block, and a few integers for each class and
each image.

C classes, K sub-centers, D embedding; b classes and m images of a block.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint
from plsc.checkpoint.tools import CutRows, SavedRows, as_float64, write_as_ranks
from plsc.config import Config
from plsc.data.class_identity import find_change, identify_classes
from plsc.data.class_names import ClassNames
from plsc.data.records import Records
from plsc.distributed.topology import Topology
from plsc.engine.about import About
from plsc.engine.class_change import names_in, read_classes
from plsc.engine.class_features import ClassBlock, ClassFeatures, class_blocks
from plsc.engine.dataloading import data_folder, open_training_records
from plsc.engine.places import place_of_training_data, places_of_use
from plsc.engine.saved_centers import WEIGHT
from plsc.engine.state import open_backbone
from plsc.errors import CheckpointError, ConfigError
from plsc.metrics.embeddings import CENTER_FLOOR
from plsc.utils.atomic import check_new_folder, write_file
from plsc.utils.csv_rows import csv_bytes
from plsc.utils.files import check_has_folder
from plsc.utils.hints import setter
from plsc.utils.locations import is_remote, keep_credentials
from plsc.utils.plural import counted
from plsc.utils.ranges import Range

log = logging.getLogger("plsc")

ANGLE = 75.0
"""Degrees, as in the paper."""
COLUMNS = ("image", "class", "angle", "nearest_subcenter", "dominant_subcenter")
_DATA_SETTINGS = (
    "dataset_dir",
    "min_images_per_class",
    "val_split",
    "seed",
    "bad_images",
)  # which images were trained on
_BLOCK_NUMBERS = 1 << 23  # float64 numbers of the centers of a block
_BLOCK_IMAGES = 1 << 20  # whose cosines to the K centers of their class are in memory


@dataclass(frozen=True)
class SubcentersDropped:
    """What was done.

    Attributes:
        path: the folder written.
        classes: C.
        without_images: number of classes without an image, which keep sub-center 0.
        images: number of images that were embedded.
        skipped: number of images that cannot be read; they count nowhere.
        angle: the limit in degrees.
        above: number of images at a larger angle from the dominant center of their class.
        dropped: number of centers that were left out, C (K - 1).
        csv: the file that lists the images above the limit; None where none was asked for.
    """

    path: str
    classes: int
    without_images: int
    images: int
    skipped: int
    angle: float
    above: int
    dropped: int
    csv: str | None


def drop_subcenters(
    config: Config,
    topology: Topology,
    *,
    target: str | Path,
    angle: float = ANGLE,
    csv: str | Path | None = None,
) -> SubcentersDropped:
    """Write a checkpoint with the dominant center of each class, and list the images that are far from it.

    The dominant center is the one that most of the class's training images are nearest to; of several such the one with
    the greatest sum of cosines to all images of the class; then the one of the lowest number. An image is embedded as
    in verification, with its mirror image where `flip` is set, by the running statistics. Optimizer state of a center
    stays with it; all else is the same, so that a run with `subcenters` 1 goes on from it.

    Args:
        config: the settings; the checkpoint is `checkpoint_dir`, else the newest of `model_save_dir`. Settings of the
            network and the data that are not given are those of the checkpoint.
        topology: of the one process.
        target: the folder to write; it must not exist.
        angle: in degrees, 0 to 180.
        csv: a file to write with a row for each image above `angle`; it must not exist. See `COLUMNS`.

    Raises:
        CheckpointError: the checkpoint has one center per class, is damaged or custom, or is of other classes than the
            data; or the target exists or cannot be written.
        ConfigError: `angle` is out of range, `csv` exists or cannot be written, a place to write to is remote, or there
            are several processes.
        DataError: the data cannot be opened, or an image cannot be read, unless `bad_images` is 'skip'.
    """
    for place in (target, csv):
        if is_remote(url := keep_credentials(str(place))):
            raise ConfigError(f"{url} is a remote place, expected a local one; copy what is written there afterwards")
    target, csv = Path(target), None if csv is None else Path(csv)
    if topology.world_size > 1:
        raise ConfigError(
            f"got {topology.world_size} processes, expected one: sub-centers are dropped by one process; start it "
            f"without plsc launch"
        )
    _check_places(target, angle, csv)
    config = places_of_use(config)
    saved = Checkpoint(config.checkpoint_dir or config.model_save_dir)
    about = About.of(saved)
    _check_centers(saved, about)
    config = config.model_copy(update={"checkpoint_dir": str(saved.path), **_data_settings(config, about)})
    backbone, config, saved = open_backbone(config)
    config = place_of_training_data(config)
    records = _open_data(config)
    _check_classes(saved, about, records, folder=data_folder(config))
    count = _Count(saved, about, records, ClassFeatures(backbone, records, config), angle)
    with _listing(csv) as write:
        for rows in count.blocks():
            write(rows)
        _write(saved, about, count.dominant, target)
    return SubcentersDropped(
        path=str(target),
        classes=len(count.dominant),
        without_images=count.without_images,
        images=count.images,
        skipped=len(records) - count.images,
        angle=angle,
        above=count.above,
        dropped=len(count.dominant) * (about.settings.subcenters - 1),
        csv=None if csv is None else str(csv),
    )


def _check_places(target: Path, angle: float, csv: Path | None) -> None:
    """Refuse what would fail after all images were embedded."""
    if not (math.isfinite(angle) and 0 <= angle <= 180):
        raise ConfigError(f"angle: got {angle:g}, expected degrees from 0 to 180")
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists and is never overwritten; name another folder")
    if csv is not None:
        if os.path.lexists(csv):
            raise ConfigError(f"{csv} exists and is not overwritten; name another file")
        check_has_folder(csv, ConfigError)
    check_new_folder(target, CheckpointError)


def _check_centers(saved: Checkpoint, about: About) -> None:
    classes, subcenters = about.settings.num_classes, about.settings.subcenters
    if subcenters == 1:
        raise CheckpointError(
            f"{saved.path}: it has one center per class already, so none can be dropped; use it as it is, or name a "
            f"checkpoint that was trained with {setter('subcenters', 3)}"
        )
    if not saved.names(WEIGHT) or saved.shape(WEIGHT)[:2] != [classes, subcenters]:
        raise CheckpointError(
            f"{saved.path}: holds no tensor '{WEIGHT}' with {subcenters} centers for each of "
            f"{counted(classes, 'class')}: its head is a custom one; expected a checkpoint of a loss of this library"
        )


def _data_settings(config: Config, about: About) -> dict[str, Any]:
    """Those of the training, unless they are given."""
    settings = about.settings.model_dump()
    return {name: settings[name] for name in _DATA_SETTINGS if name in settings and not config.is_given(name)}


def _open_data(config: Config) -> Records:
    if config.train_reader is not None:
        raise ConfigError(
            f"train_reader gives batches in an order of its own, expected images that can be read by class; "
            f"{setter('dataset_dir')} or {setter('train_dataset')}"
        )
    return open_training_records(config)


def _check_classes(saved: Checkpoint, about: About, records: Records, *, folder: str) -> None:
    """Refuse data whose classes are not those that the centers are of."""
    before = None if about.classes is None else read_classes(saved, about.classes)
    now = identify_classes(records, folder)
    change, largest = None, int(records.labels.max())
    if before is None or now is None:
        log.info("%s: whether the data has the classes of the checkpoint cannot be told", saved.path)
    else:
        change = find_change(before, now, records=records, folder=folder)
        if change is None and before.by == now.by == "name" and len(before.table) != len(now.table):
            change = f"it has {counted(len(now.table), 'class name')}, the checkpoint {len(before.table)}"
    if change is None and largest >= about.settings.num_classes:
        change = f"it has a class {largest}, the checkpoint {counted(about.settings.num_classes, 'class')}"
    if change is not None:
        raise CheckpointError(
            f"{saved.path}: the training data has other classes than the checkpoint, so its images say nothing about "
            f"the centers: {change}. Give the data of that training ({setter('dataset_dir')}); or bring the checkpoint "
            f"to the classes of this data first: plsc checkpoint classes, or train with "
            f"{setter('class_change', 'by_name')}"
        )


@contextlib.contextmanager
def _listing(path: Path | None) -> Iterator[Callable[[Iterable[Sequence[object]]], None]]:
    """Writes rows to the CSV file, which gets its name where nothing fails."""
    if path is None:
        yield lambda rows: None
        return
    with contextlib.ExitStack() as stack:

        def write(rows: Iterable[Sequence[object]]) -> None:
            with _written(path):
                file.write(csv_bytes(rows))

        with _written(path):
            file = stack.enter_context(write_file(path))
        write([COLUMNS])
        yield write
        with _written(path):
            stack.close()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


class _Count:
    """One pass over the images.

    Attributes:
        dominant: [C], the number of each class's dominant center; 0 for a class without an image.
        without_images: number of such classes.
        images: number of images embedded.
        above: number of those above the limit.
    """

    def __init__(
        self, saved: Checkpoint, about: About, records: Records, features: ClassFeatures, angle: float
    ) -> None:
        self._saved, self._records, self._features, self._angle = saved, records, features, angle
        self._names, self._subcenters = ClassNames(names_in(saved)), about.settings.subcenters
        self.dominant = np.zeros([about.settings.num_classes], np.int64)
        self.without_images = self.images = self.above = 0

    def blocks(self) -> Iterator[list[list[object]]]:
        """Block by block, the rows of the images above the limit, by class and number."""
        classes, labels = np.arange(len(self.dominant), dtype=np.int64), self._records.labels
        size = max(1, _BLOCK_NUMBERS // math.prod(self._saved.shape(WEIGHT)[1:]))
        for block in class_blocks(labels, classes, most_classes=size, most_images=_BLOCK_IMAGES):
            cosines, is_read = self._cosines(block)
            places, cosines = block.places[is_read], cosines[is_read]
            dominant = dominant_centers(cosines, places, len(block.classes))
            self.dominant[block.classes] = dominant
            own = cosines[np.arange(len(cosines)), dominant[places]]
            angles = np.degrees(np.arccos(np.clip(own, -1.0, 1.0)))
            self.images += len(places)
            self.without_images += len(block.classes) - len(np.unique(places))
            far = np.flatnonzero(angles > self._angle)
            far = far[np.argsort(places[far], kind="stable")]
            self.above += len(far)
            nearest, images = cosines[far].argmax(axis=1), block.images[is_read][far]
            found = zip(images.tolist(), block.classes[places[far]].tolist(), angles[far].tolist(), nearest.tolist())
            yield [self._row(*each) for each in found]

    def _row(self, image: int, label: int, angle: float, nearest: int) -> list[object]:
        name = self._records.path_of(image) or self._records.describe(image)
        return [name, self._names[label], f"{angle:.3f}", nearest, int(self.dominant[label])]

    def _cosines(self, block: ClassBlock) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """[m, K], of each image and the centers of its class; and [m], whether it could be read."""
        rows = Range(int(block.classes[0]), int(block.classes[-1]) + 1)
        centers = as_float64(self._saved.read(WEIGHT, rows, is_finite=True))
        centers /= np.maximum(np.linalg.norm(centers, axis=2, keepdims=True), CENTER_FLOOR)
        cosines = np.zeros([len(block.images), self._subcenters])
        is_read = np.zeros([len(block.images)], np.bool_)
        for read, units in self._features(block.images):
            cosines[read] = np.einsum("nd,nkd->nk", units.astype(np.float64), centers[block.places[read]])
            is_read[read] = True
        return cosines, is_read


def dominant_centers(cosines: NDArray[np.float64], places: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """The dominant center of each class, [b]; 0 for a class without an image.

    Args:
        cosines: [m, K], of each image and the centers of its class.
        places: [m], the class of each image, 0 to b - 1.
        num_classes: b.
    """
    votes, sums = np.zeros([num_classes, cosines.shape[1]], np.int64), np.zeros([num_classes, cosines.shape[1]])
    np.add.at(votes, (places, cosines.argmax(axis=1)), 1)
    np.add.at(sums, places, cosines)
    dominant: NDArray[np.int64] = np.where(votes == votes.max(axis=1, keepdims=True), sums, -np.inf).argmax(axis=1)
    return dominant


def _write(saved: Checkpoint, about: About, dominant: NDArray[np.int64], target: Path) -> None:
    grouped = [about.settings.num_classes, about.settings.subcenters]
    tensors: dict[str, CutRows] = {}
    for name in saved.names():
        is_grouped = saved.has_row_per_class(name) and saved.shape(name)[:2] == grouped
        tensors[name] = _DominantRows(saved, name, dominant) if is_grouped else SavedRows(saved, name)
    write_as_ranks(
        target,
        tensors,
        sharded=saved.has_row_per_class,
        about={**saved.about, "settings": {**saved.about["settings"], "subcenters": 1}},
        ranks=max(len(saved.parts(name)) for name in saved.names()),
    )


class _DominantRows(SavedRows):
    """Of a tensor [C, K, ...] the rows of the dominant centers, [C, ...]."""

    def __init__(self, saved: Checkpoint, name: str, dominant: NDArray[np.int64], rows: Range | None = None) -> None:
        super().__init__(saved, name, rows)
        self._dominant = dominant if rows is None else dominant[rows.start : rows.stop]
        self.shape = [self.shape[0], *self.shape[2:]]
        self._all = dominant

    def cut(self, rows: Range) -> _DominantRows:
        """The same tensor's rows in a range."""
        return _DominantRows(self._saved, self._name, self._all, rows)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop)."""
        values = self._read(self._saved, start, stop)
        chosen: NDArray[Any] = values[np.arange(len(values)), self._dominant[start:stop]]
        return chosen

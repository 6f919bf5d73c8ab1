"""The hardest pairs and the worst classes as pictures, where their images are at hand."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from plsc.config import Config
from plsc.data.image_input import take_image
from plsc.data.images import decode, encode, resize
from plsc.data.records import Records
from plsc.data.verification_set import VerificationSet, find_bin
from plsc.engine.closed_set import validation_records
from plsc.engine.dataloading import data_folder, open_training_records
from plsc.engine.details import PairScores
from plsc.errors import DataError, PLSCError
from plsc.report.runs import Run

_SIDE = 96  # pixels of a picture's longer side
PAIRS, CLASSES = 6, 12
"""How many pairs of each kind, and how many classes, are shown."""


class Pair(NamedTuple):
    """Attributes: `number` of the pair in its set; `score`; `pictures`, two as data, none where not at hand."""

    number: int
    score: float
    pictures: list[str]


class HardPairs(NamedTuple):
    """Attributes: `same`, the lowest scores of same pairs; `different`, the highest of different ones; `missing`, why
    there are no pictures, or ''."""

    same: list[Pair]
    different: list[Pair]
    missing: str


def hard_pairs(run: Run, name: str) -> HardPairs:
    """The pairs of a verification set that the network judged worst."""
    found = run.scores[name]
    order = np.argsort(found.scores, kind="stable")
    lowest = [place for place in order if found.is_same[place]][:PAIRS]
    highest = [place for place in order[::-1] if not found.is_same[place]][:PAIRS]
    try:
        images, missing = _open_set(run, name, found).images, ""
    except (PLSCError, OSError, ValueError) as error:
        images, missing = None, str(error)

    def shown(place: int) -> Pair:
        number = int(found.places[place])
        pictures = [] if images is None else [_picture(images[2 * number + side]) for side in (0, 1)]
        return Pair(number, float(found.scores[place]), pictures)

    return HardPairs([shown(place) for place in lowest], [shown(place) for place in highest], missing)


def _open_set(run: Run, name: str, found: PairScores) -> VerificationSet:
    config = _config_of(run)
    for target in config.val_names:
        path, own = find_bin(target, Path(data_folder(config)))
        if own == name:
            pairs = VerificationSet.load(path, own)
            if len(pairs) != found.pairs or (pairs.is_same[found.places] != found.is_same).any():
                raise DataError(f"{path} holds other pairs than the run verified")
            return pairs
    raise DataError(f"the settings of the run name no file for {name}")


class WorstClass(NamedTuple):
    """Attributes: those of `plsc.engine.details`; `share`, correct / images; `picture`, an image of the class as data,
    '' where it is not at hand."""

    name: str
    images: int
    correct: int
    share: float
    taken_for: str
    times: int
    picture: str


def worst_classes(run: Run) -> tuple[list[WorstClass], str]:
    """(the classes of the validation data that were found least often, why there are no pictures or '')."""
    if not run.classes:
        return [], ""
    records: Records | None = None
    missing = ""
    try:
        records = _validation_records(_config_of(run))
    except (PLSCError, OSError, ValueError) as error:
        missing = str(error)
    shown = []
    for row in run.classes[:CLASSES]:
        place = int(row["place"])
        picture = "" if records is None else _picture_of_record(records, place)
        images, correct = int(row["images"]), int(row["correct"])
        taken_for = "" if row["taken_for"] is None else str(row["taken_for"])
        share = correct / images if images else 0.0
        shown.append(WorstClass(str(row["class"]), images, correct, share, taken_for, int(row["times"]), picture))
    return shown, missing


def _validation_records(config: Config) -> Records:
    is_held_out = config.val_dataset_dir is None and config.val_split > 0
    found = validation_records(config, open_training_records(config) if is_held_out else None)
    if found is None:
        raise DataError("the validation data was given by a script")
    return found[0]


def _config_of(run: Run) -> Config:
    """The settings of a run that say where its data is.

    Raises:
        DataError: there are none, or the data is behind a URL.
    """
    names = ("dataset_dir", "val_targets", "val_dataset_dir", "val_split", "seed", "min_images_per_class")
    given = {name: run.settings[name] for name in names if name in run.settings}
    if not given:
        raise DataError("no checkpoint says where the data is")
    config = Config(**given)
    remote = [
        value for value in (config.dataset_dir, config.val_targets, config.val_dataset_dir) if "://" in (value or "")
    ]
    if remote:
        raise DataError(f"{remote[0]} is no local data")
    return config


def _picture_of_record(records: Records, place: int) -> str:
    try:
        return _picture(records[place].image) if 0 <= place < len(records) else ""
    except PLSCError:
        return ""


def _picture(image: Any) -> str:
    """An image as data for `src`; '' where it cannot be decoded."""
    try:
        pixels = decode(take_image(image))
        scale = min(1.0, _SIDE / max(pixels.shape[:2]))
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        data = encode(resize(pixels, (height, width)), ".jpg", parameters=(cv2.IMWRITE_JPEG_QUALITY, 82))
    except PLSCError:
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"

"""What a verification found in detail, in the folder of the checkpoint that was verified, for `plsc report`.

    output/7/scores.npz      of each verification set: the cosine of each pair, and whether it is of one identity
    output/7/classes.json    of the validation data: the classes that were found least often

Both are bounded: `MAX_PAIRS` pairs of a set, about 500 kB, and `MAX_CLASSES` classes. They stay as long as the
checkpoint.
"""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plsc.data.verification_set import VerificationSet
from plsc.engine.closed_set import ClosedSet
from plsc.metrics.closed_set import ClosedSetReport
from plsc.metrics.verification import VerificationReport
from plsc.utils.atomic import write_file
from plsc.utils.json_text import to_json

log = logging.getLogger("plsc")

SCORES, CLASSES = "scores.npz", "classes.json"
MAX_PAIRS, MAX_CLASSES = 100_000, 50


class PairScores(NamedTuple):
    """What was found for P pairs of a verification set.

    Attributes:
        places: [P], the numbers of the pairs in the set.
        scores: [P] float32, their cosines.
        is_same: [P] bool.
        pairs: of the set; more than P where only some of them were kept, evenly spaced.
    """

    places: NDArray[np.int64]
    scores: NDArray[np.float32]
    is_same: NDArray[np.bool_]
    pairs: int


class Details:
    """What one verification found.

    Args:
        closed: the validation data; None for none.
    """

    def __init__(self, closed: ClosedSet | None) -> None:
        self._closed = closed
        self._pairs: dict[str, PairScores] = {}
        self._classes: list[dict[str, Any]] = []

    def add_pairs(self, pairs: VerificationSet, report: VerificationReport) -> None:
        """Keep the scores of a set."""
        if report.scores is None:
            return
        count = len(pairs)
        places = np.unique(np.linspace(0, count - 1, min(count, MAX_PAIRS)).astype(np.int64))
        scores = report.scores[places].astype(np.float32)
        self._pairs[pairs.name] = PairScores(places, scores, pairs.is_same[places], count)

    def add_classes(self, report: ClosedSetReport) -> None:
        """Keep the classes of which the smallest share was found; of equals those with the most images."""
        if self._closed is None:
            return
        results = [found for found in report.classes() if found.correct < found.images]
        results.sort(key=lambda found: (found.correct / found.images, -found.images, found.label))
        names = self._closed.names
        for found in results[:MAX_CLASSES]:
            confusion = found.confusion
            self._classes.append(
                {
                    "class": names[found.label],
                    "images": found.images,
                    "correct": found.correct,
                    "taken_for": None if confusion is None else names[confusion.predicted],
                    "times": 0 if confusion is None else confusion.images,
                    "place": int((self._closed.labels == found.label).argmax()),
                }
            )

    def write(self, path: Path) -> None:
        """Write both files into the folder of a checkpoint. Where the disk refuses, a warning says so."""
        contents: dict[str, bytes] = {}
        if self._pairs:
            contents[SCORES] = _packed(self._pairs)
        if self._classes:
            contents[CLASSES] = to_json(self._classes).encode()
        for name, content in contents.items():
            try:
                with write_file(path / name) as file:
                    file.write(content)
            except OSError as error:
                log.warning("%s: cannot be written: %s", path / name, error.strerror)


def _packed(sets: dict[str, PairScores]) -> bytes:
    arrays: dict[str, Any] = {"names": np.array(list(sets))}
    for number, found in enumerate(sets.values()):
        arrays.update({f"{number}.{name}": np.asarray(value) for name, value in found._asdict().items()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def read_scores(path: Path) -> dict[str, PairScores]:
    """What the verification of a checkpoint found, by the name of the set; empty where there is none, or it is damaged.

    Args:
        path: the folder of the checkpoint.
    """
    found: dict[str, PairScores] = {}
    try:
        with np.load(path / SCORES, allow_pickle=False) as arrays:
            for number, name in enumerate(arrays["names"].tolist()):
                places, scores, same = (arrays[f"{number}.{part}"] for part in ("places", "scores", "is_same"))
                if not len(places) == len(scores) == len(same) or scores.ndim != 1:
                    raise ValueError("arrays of different lengths")
                pairs = int(arrays[f"{number}.pairs"])
                found[str(name)] = PairScores(places, scores.astype(np.float32), same.astype(np.bool_), pairs)
    except FileNotFoundError:
        pass
    except Exception as error:  # zipfile and NumPy raise many kinds for a damaged file
        log.warning("%s: cannot be read: %s", path / SCORES, error)
    return found


def read_classes(path: Path) -> list[dict[str, Any]]:
    """The worst classes of the validation of a checkpoint; empty where there are none, or the file is damaged."""
    keys = {"class", "images", "correct", "taken_for", "times", "place"}
    try:
        found = json.loads((path / CLASSES).read_bytes())
        if not isinstance(found, list) or not all(isinstance(row, dict) and keys <= row.keys() for row in found):
            raise ValueError("expected a list of classes")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s: cannot be read: %s", path / CLASSES, error)
        return []
    return found

"""A gallery of enrolled embeddings: who is it most similar to. On faiss, exact, persisted.

A folder holds `index.faiss`, the embeddings by number, and `gallery.json`, the name of each number. It is written
aside and renamed, so that a server or a crash never sees half of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plsc.errors import DataError, ServingError
from plsc.inference.model_card import ModelDescription
from plsc.utils.atomic import replacing
from plsc.utils.lazy import require

ABOUT_FILE, INDEX_FILE = "gallery.json", "index.faiss"
FORMAT = "plsc-gallery"


@dataclass(frozen=True)
class Match:
    """An entry of the gallery that is similar to a probe.

    Attributes:
        name: under which it was enrolled; several entries may share one.
        cosine: of the two embeddings.
        same: whether the cosine reaches the threshold; None where there is none.
    """

    name: str
    cosine: float
    same: bool | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Gallery:
    """Embeddings [n, D] of unit length under names, searched exhaustively by cosine.

    Exact search reads all n D numbers for each probe: tens of milliseconds at a million entries of 512.

    Args:
        dimension: D.
        weights: the digest of the network whose embeddings they are, as a model's description has it; empty where it
            is not known.

    Raises:
        MissingDependencyError: faiss is not installed.
    """

    def __init__(self, dimension: int, weights: str = "") -> None:
        faiss = _faiss()
        self.weights = weights
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._names: dict[int, str] = {}
        self._next = 0

    def __len__(self) -> int:
        return self._index.ntotal

    @property
    def dimension(self) -> int:
        return self._index.d

    @property
    def names(self) -> list[str]:
        """The name of each entry, in order of enrolment."""
        return [self._names[number] for number in sorted(self._names)]

    def add(self, names: Sequence[str], embeddings: np.ndarray) -> None:
        """Enrol embeddings [n, D] under n names; each is brought to unit length.

        Raises:
            DataError: shapes that do not fit, an embedding that is zero or not finite, or an empty name.
        """
        rows = self._rows(embeddings)
        if len(names) != len(rows):
            raise DataError(f"gallery: got {len(names)} names for {len(rows)} embeddings, expected one each")
        if not all(isinstance(name, str) and name for name in names):
            raise DataError("gallery: a name is empty or no text, expected what to call the entry")
        numbers = np.arange(self._next, self._next + len(rows), dtype=np.int64)
        self._index.add_with_ids(rows, numbers)
        self._names.update(zip(numbers.tolist(), names))
        self._next += len(rows)

    def remove(self, name: str) -> int:
        """Take out all entries of a name; returns how many there were.

        Raises:
            DataError: there is none.
        """
        numbers = [number for number, other in self._names.items() if other == name]
        if not numbers:
            raise DataError(f"gallery: no entry is named {name!r}; it has {len(set(self._names.values()))} names")
        self._index.remove_ids(np.asarray(numbers, np.int64))
        for number in numbers:
            del self._names[number]
        return len(numbers)

    def search(self, probes: np.ndarray, count: int = 5, threshold: float | None = None) -> list[list[Match]]:
        """For each probe [Q, D] its `count` most similar entries, the most similar first.

        Args:
            threshold: cosine from which on two count as the same, as a verification report states it.

        Raises:
            DataError: shapes that do not fit, or a probe that is zero or not finite.
        """
        rows = self._rows(probes)
        cosines, numbers = self._index.search(rows, max(1, min(count, len(self))))
        return [
            [
                Match(self._names[number], float(cosine), None if threshold is None else bool(cosine >= threshold))
                for cosine, number in zip(*row)
                if number >= 0
            ]
            for row in zip(cosines.tolist(), numbers.tolist())
        ]

    def check_model(self, description: ModelDescription) -> None:
        """Raise `ServingError` where these are not embeddings of this model."""
        if description.emb_dim != self.dimension:
            raise ServingError(
                f"the gallery's embeddings are of {self.dimension}, the model's of "
                f"{description.emb_dim}; build the gallery with this model"
            )
        if self.weights and description.weights and self.weights != description.weights:
            raise ServingError(
                f"the gallery was built with other weights than those of {description.directory}: their "
                f"embeddings have nothing in common; build it again with this model"
            )

    def save(self, folder: str | Path, replace: bool = False) -> None:
        """Write the gallery.

        Args:
            replace: an earlier gallery there gives way; anything else never does.

        Raises:
            ServingError: there is something already, or it cannot be written.
        """
        faiss = _faiss()
        folder = Path(folder)
        if folder.exists() and not (replace and (folder / ABOUT_FILE).is_file()):
            raise ServingError(f"{folder} exists and is not overwritten; choose another name")
        about = {
            "format": FORMAT,
            "version": 1,
            "dimension": self.dimension,
            "weights": self.weights,
            "next": self._next,
            "names": {str(number): name for number, name in self._names.items()},
        }
        with replacing(folder, ServingError) as replacement:
            replacement.ours = {INDEX_FILE, ABOUT_FILE}
            try:
                faiss.write_index(self._index, str(replacement.path / INDEX_FILE))
            except RuntimeError as error:
                raise ServingError(f"{folder}: cannot be written: {str(error)[:200]}") from None
            (replacement.path / ABOUT_FILE).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def open(cls, folder: str | Path) -> Gallery:
        """Read a gallery.

        Raises:
            ServingError: there is none, or it is damaged.
        """
        faiss = _faiss()
        folder = Path(folder)
        try:
            about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
            gallery = cls(about["dimension"], about.get("weights", ""))
            gallery._names = {int(number): name for number, name in about["names"].items()}
            gallery._next = about["next"]
            gallery._index = faiss.read_index(str(folder / INDEX_FILE))
        except FileNotFoundError:
            raise ServingError(
                f"{folder}: no gallery there ({ABOUT_FILE} is missing); make one with plsc gallery build"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ServingError(f"{folder}: the gallery is damaged: {str(error)[:200]}; build it again") from None
        found = faiss.vector_to_array(gallery._index.id_map).tolist()
        if about.get("format") != FORMAT or sorted(found) != sorted(gallery._names):
            raise ServingError(
                f"{folder}: {INDEX_FILE} and {ABOUT_FILE} do not belong together; build the gallery again"
            )
        return gallery

    def _rows(self, embeddings: np.ndarray) -> np.ndarray:
        rows = np.array(embeddings, np.float32, ndmin=2)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise DataError(f"gallery: got embeddings {list(rows.shape)}, expected [n, {self.dimension}]")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            bad = int((~np.isfinite(lengths) | (lengths == 0)).argmax())
            raise DataError(f"gallery: embedding {bad} is zero or not finite")
        return np.ascontiguousarray(rows / lengths)


def read_threshold(report: str | Path, name: str | None = None) -> float:
    """The threshold of a verification report, as `plsc test` prints it: the figure '<set>/threshold'.

    Args:
        report: a file with the JSON that `plsc test` printed.
        name: of the verification set; may be left out where there is but one.

    Raises:
        ServingError: there is no such figure, or there are several.
    """
    try:
        figures = json.loads(Path(report).read_text(encoding="utf-8"))
        found = {
            key[: -len("/threshold")]: float(value) for key, value in figures.items() if key.endswith("/threshold")
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ServingError(f"{report}: no report of plsc test: {error}") from None
    if name is None and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        raise ServingError(f"{report}: got the set {name!r}, expected one of {', '.join(sorted(found)) or 'none'}")
    return found[name]


def _faiss() -> Any:
    # It tells of each library that it tries, and Paddle shows everybody's log.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    return require("faiss", "faiss-cpu", "a gallery")

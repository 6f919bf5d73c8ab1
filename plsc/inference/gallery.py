"""A gallery of enrolled embeddings, searched exactly by faiss and saved as a folder.

The folder holds `index.faiss`, the embeddings by number, and `gallery.json`, the name of each number. It is written
under another name and then renamed, so that neither a server nor a crash sees a part of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import DataError, ServingError
from plsc.inference.embedding import Embeddings
from plsc.inference.model_card import ModelCard
from plsc.metrics.embeddings import EPSILON
from plsc.utils.artifacts import recognize
from plsc.utils.atomic import restore_folder, write_folder
from plsc.utils.lazy import require

ABOUT_FILE, INDEX_FILE = "gallery.json", "index.faiss"
FORMAT = "plsc-gallery"


@dataclass(frozen=True)
class Match:
    """An entry of the gallery that is similar to a probe.

    Attributes:
        name: name of the entry; several entries may share one.
        cosine: cosine of the entry's embedding and the probe's, -1 to 1.
        same: whether the cosine reaches the threshold; None without a threshold.
    """

    name: str
    cosine: float
    same: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, as JSON takes them."""
        return asdict(self)


class Gallery:
    """Embeddings [n, D] of unit length, each under a name, searched by cosine.

    The search is exact: it reads all n D numbers for each probe, which takes tens of milliseconds for a million entries
    of 512 numbers.

    Args:
        dimension: D.
        weights: digest of the network that the embeddings come from, `ModelCard.weights`. `check_model` refuses a model
            with another one. Empty, the default, if it is not known.

    Raises:
        MissingDependencyError: faiss is not installed.

    Example:
        >>> model = plsc.load_inference_model("output")
        >>> gallery = Gallery(model.emb_dim, model.card.weights)
        >>> gallery.add(["ann", "bob"], model.embed(["ann.jpg", "bob.jpg"]))
        >>> gallery.save("faces")
        >>> Gallery.open("faces").search(model.embed("probe.jpg"), 1, threshold=0.3)
        [[Match(name='bob', cosine=0.71, same=True)]]
    """

    def __init__(self, dimension: int, weights: str = "") -> None:
        faiss = _faiss()
        self.weights = weights
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._names: dict[int, str] = {}
        self._next = 0

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self._index.d)

    @property
    def names(self) -> list[str]:
        """The name of each entry, in order of enrollment."""
        return [self._names[number] for number in sorted(self._names)]

    def add(self, names: Sequence[str], embeddings: NDArray[Any]) -> None:
        """Enroll embeddings.

        Args:
            names: n names, none of them empty. A name may come several times.
            embeddings: [n, D] of any length; each is brought to unit length.

        Raises:
            DataError: the number of names or the shape differs from what is expected, an embedding is zero or not
                finite, or a name is empty.
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
        """Remove all entries of a name; returns their number.

        Raises:
            DataError: no entry has this name.
        """
        numbers = [number for number, other in self._names.items() if other == name]
        if not numbers:
            raise DataError(f"gallery: no entry is named {name!r}; it has {len(set(self._names.values()))} names")
        self._index.remove_ids(np.asarray(numbers, np.int64))
        for number in numbers:
            del self._names[number]
        return len(numbers)

    def search(self, probes: NDArray[Any], count: int = 5, *, threshold: float | None = None) -> list[list[Match]]:
        """For each probe its most similar entries, the most similar first.

        Args:
            probes: [Q, D] of any length.
            count: entries per probe, 1 or more; fewer are returned from a smaller gallery.
            threshold: lowest cosine, -1 to 1, at which two embeddings count as one identity; a verification report
                states it. Without it `Match.same` is None.

        Raises:
            DataError: the probes are not [Q, D], or one is zero or not finite.
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

    def check_model(self, card: ModelCard) -> None:
        """Check that the gallery's embeddings come from this model.

        Raises:
            ServingError: the model has another embedding size, or other weights than the gallery states.
        """
        if card.emb_dim != self.dimension:
            raise ServingError(
                f"the gallery's embeddings are of {self.dimension}, the model's of "
                f"{card.emb_dim}; build the gallery with this model"
            )
        if self.weights and card.weights and self.weights != card.weights:
            raise ServingError(
                f"the gallery was built with other weights than those of {card.directory}: their "
                f"embeddings have nothing in common; build it again with this model"
            )

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Write the gallery to a folder.

        Args:
            folder: a new folder.
            replace: replace the gallery that the folder holds. A folder that holds no gallery is never replaced.

        Raises:
            ServingError: the folder exists and may not be replaced, or it cannot be written.
        """
        faiss = _faiss()
        folder = Path(folder)
        restore_folder(folder)
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
        with write_folder(folder, ServingError, replace=replace) as write:
            write.obsolete = {INDEX_FILE, ABOUT_FILE}
            try:
                faiss.write_index(self._index, str(write.path / INDEX_FILE))
            except RuntimeError as error:
                raise ServingError(f"{folder}: cannot be written: {str(error)[:200]}") from None
            (write.path / ABOUT_FILE).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def open(cls, folder: str | Path) -> Gallery:
        """Read a gallery that `save` wrote.

        Raises:
            ServingError: the folder holds no gallery, or the gallery is damaged.
        """
        faiss = _faiss()
        folder = Path(folder)
        if not folder.exists():
            restore_folder(folder)
        try:
            about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
            gallery = cls(about["dimension"], about.get("weights", ""))
            gallery._names = {int(number): name for number, name in about["names"].items()}
            gallery._next = about["next"]
            gallery._index = faiss.read_index(str(folder / INDEX_FILE))
        except (FileNotFoundError, NotADirectoryError):
            found = recognize(folder)
            what = f"it is {found}" if found else "make one with plsc gallery build"
            raise ServingError(f"{folder}: no gallery there ({ABOUT_FILE} is missing); {what}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ServingError(f"{folder}: the gallery is damaged: {str(error)[:200]}; build it again") from None
        found = faiss.vector_to_array(gallery._index.id_map).tolist()
        if about.get("format") != FORMAT or sorted(found) != sorted(gallery._names):
            raise ServingError(
                f"{folder}: {INDEX_FILE} and {ABOUT_FILE} do not belong together; build the gallery again"
            )
        return gallery

    def _rows(self, embeddings: NDArray[Any]) -> Embeddings:
        """Embeddings [n, D] float32 of unit length."""
        rows = np.array(embeddings, np.float32, ndmin=2)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise DataError(f"gallery: got embeddings {list(rows.shape)}, expected [n, {self.dimension}]")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        bad_rows = ~(np.isfinite(lengths) & (lengths >= EPSILON))
        if bad_rows.any():
            bad = int(bad_rows.argmax())
            raise DataError(f"gallery: embedding {bad} is zero or not finite")
        return np.ascontiguousarray(rows / lengths)


def read_threshold(report: str | Path, name: str | None = None) -> float:
    """The threshold '<set>/threshold' of a verification report.

    Args:
        report: a file with the JSON that `plsc test` printed.
        name: name of the verification set. It may be left out if the report has one set.

    Raises:
        ServingError: the file is no such report, has no set of this name, or has several sets and `name` is left out;
            or the set has no threshold.
    """
    try:
        metrics = json.loads(Path(report).read_text(encoding="utf-8"))
        found = {
            key[: -len("/threshold")]: None if value is None else float(value)
            for key, value in metrics.items()
            if key.endswith("/threshold")
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ServingError(f"{report}: no report of plsc test: {error}") from None
    if name is None and len(found) == 1:
        name = next(iter(found))
    if name not in found:
        raise ServingError(f"{report}: got the set {name!r}, expected one of {', '.join(sorted(found)) or 'none'}")
    threshold = found[name]
    if threshold is None or not -1 <= threshold <= 1 + 1e-9:  # NaN is refused too
        raise ServingError(
            f"{report}: the set {name!r} has the threshold {threshold}, expected a cosine of -1 to 1; a set without "
            f"both same and different pairs gives none"
        )
    return min(threshold, 1.0)  # earlier versions wrote 1.0000000000000002 for 1


def _faiss() -> Any:
    # faiss logs each library that it tries to load, and Paddle sets the root logger to show such messages.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    return require("faiss", "faiss-cpu", purpose="a gallery")

"""A gallery of enrolled embeddings, searched by faiss and saved as a folder; see `plsc.inference.gallery_files`."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import ConfigError, DataError, ServingError
from plsc.inference.embedding import Embeddings, cosines, reaches
from plsc.inference.gallery_files import StoredGallery, holds_gallery, read_gallery, read_revision, write_gallery
from plsc.inference.gallery_index import Positions, index_class
from plsc.inference.model_card import ModelCard
from plsc.metrics.embeddings import EPSILON
from plsc.utils.atomic import lock_folder, write_folder
from plsc.utils.hints import either
from plsc.utils.names import did_you_mean
from plsc.utils.numbers import as_array, as_count, as_number
from plsc.utils.plural import counted
from plsc.utils.threads import SharedLock

# Rows that are converted to float64 at a time.
_BLOCK = 1 << 14
_LARGEST_DIMENSION = 1 << 24  # faiss takes larger ones for others


@dataclass(frozen=True)
class Match:
    """An entry of the gallery that is similar to a probe.

    Attributes:
        name: name of the entry; several entries may share one.
        cosine: cosine of the entry's embedding and the probe's, -1 to 1, rounded to 7 decimals: 1 for the entry's own
            embedding, except in an index 'sq8'.
        same: whether the cosine reaches the threshold, rounded alike; None without a threshold.
    """

    name: str
    cosine: float
    same: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, as JSON takes them."""
        return asdict(self)


class Gallery:
    """Embeddings [n, D] of unit length, each under a name, searched by cosine.

    Threads may share a gallery: searches run beside each other, and a change waits for them. Several processes and
    objects may change one folder: `editing` lets one wait for the other, and `save` refuses to overwrite a change that
    the object has not seen.

    Args:
        dimension: D, 1 or more.
        weights: digest of the network that the embeddings come from, `ModelCard.weights`. `check_model` refuses a model
            with another one. Empty, the default, if it is not known.
        index: how the embeddings are held and searched.

            'flat': 4 D bytes per entry. Each search reads all of them and is exact, which takes tens of milliseconds
            for a million entries of 512 numbers.
            'sq8': D bytes per entry. Each number is rounded to one of 256, which moves cosines by about 0.001.
            'hnsw': 4 D + 270 bytes per entry. A search looks at a part of the entries and may miss some; to enroll
            takes far longer. docs/serving.md has measurements.

            After a fork, searches in the new process use one thread.

    Raises:
        ConfigError: there is no such index, the dimension is no number of 1 or more, or the digest is no text.
        MissingDependencyError: faiss is not installed.

    Example:
        >>> model = plsc.load_inference_model("output")
        >>> gallery = Gallery(model.emb_dim, model.card.weights)
        >>> gallery.add(["ann", "bob"], model.embed(["ann.jpg", "bob.jpg"]))
        >>> gallery.save("faces")
        >>> with Gallery.editing("faces") as gallery:
        ...     gallery.remove("ann")
        >>> Gallery.open("faces").search(model.embed("probe.jpg"), 1, threshold=0.3)
        [[Match(name='bob', cosine=0.71, same=True)]]
    """

    def __init__(self, dimension: int, weights: str = "", *, index: str = "flat") -> None:
        size = as_count(dimension)
        if size is None or size > _LARGEST_DIMENSION:
            raise ConfigError(
                f"gallery: got embeddings of {_shown(dimension)}, expected the model's emb_dim, 1 to "
                f"{_LARGEST_DIMENSION}: Gallery(model.emb_dim, model.card.weights)"
            )
        if not isinstance(weights, str):
            raise ConfigError(
                f"gallery: got the weights {_shown(weights)}, expected the digest of the network: "
                f"Gallery(model.emb_dim, model.card.weights)"
            )
        self.weights = weights
        self._index = index_class(index)(size)
        self._names: list[str | None] = []  # by position; None where the entry is removed
        self._changes = 0
        # By folder: the revision that was last read or written there, and the changes until then.
        self._revisions: dict[str, tuple[str, int]] = {}
        self._edited: tuple[str, int] | None = None  # the folder whose lock `editing` holds, and the thread
        self._lock = SharedLock()

    def __repr__(self) -> str:
        return f"Gallery({self.dimension}, index={self.index!r}) of {counted(len(self), 'entry')}"

    def __getstate__(self) -> dict[str, Any]:
        with self._lock.reading():
            return {**self.__dict__, "_lock": None, "_edited": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = SharedLock()

    def __copy__(self) -> Gallery:
        return copy.deepcopy(self)  # two objects on one index would change each other's entries

    def __len__(self) -> int:
        with self._lock.reading():
            return self._count()

    @property
    def dimension(self) -> int:
        """D."""
        return self._index.dimension

    @property
    def index(self) -> str:
        """The way in which the embeddings are held, one of 'flat', 'sq8' and 'hnsw'."""
        return self._index.kind

    @property
    def names(self) -> list[str]:
        """The name of each entry, in order of enrollment."""
        with self._lock.reading():
            return [name for name in self._names if name is not None]

    def add(self, names: Sequence[str] | str, embeddings: NDArray[Any]) -> None:
        """Enroll embeddings.

        Args:
            names: n names, none of them empty. A name may come several times. A single text is the name of a single
                embedding.
            embeddings: [n, D] of any length; each is brought to unit length.

        Raises:
            DataError: the number of names or the shape differs from what is expected, an embedding is zero or not
                finite, or a name is empty, no text, or cannot be written in UTF-8.
        """
        rows = self._rows(embeddings)
        if isinstance(names, str) and len(rows) != 1:
            raise DataError(
                f"gallery: got the one name {names!r} for {counted(len(rows), 'embedding')}, expected one each; for "
                f"several embeddings of one name give [{names!r}] * {len(rows)}"
            )
        names = check_names([names] if isinstance(names, str) else names)
        if len(names) != len(rows):
            raise DataError(
                f"gallery: got {counted(len(names), 'name')} for {counted(len(rows), 'embedding')}, expected one each"
            )
        with self._lock.writing():
            self._names += names
            try:
                self._index.add(rows)
            finally:
                del self._names[len(self._index) :]  # those of rows that did not get in
                self._changes += 1

    def remove(self, name: str | Sequence[str]) -> int:
        """Remove all entries of a name, or of several names; returns their number.

        Raises:
            DataError: no entry has this name, or one of these names, or one is no name; then nothing is removed.
        """
        wanted = set(check_names([name] if isinstance(name, str) or not isinstance(name, Iterable) else list(name)))
        with self._lock.writing():
            positions = [position for position, other in enumerate(self._names) if other in wanted]
            unknown = wanted - {self._names[position] for position in positions}
            if unknown:
                known = {other for other in self._names if other is not None}
                raise DataError(
                    f"gallery: no entry is named {min(unknown)!r}; {did_you_mean(min(unknown), known)}it has "
                    f"{counted(len(known), 'name')}"
                )
            self._changes += 1
            self._index.remove(np.asarray(positions, np.int64))
            if self._index.closes_gaps:
                self._names = [other for other in self._names if other not in wanted]
            else:
                self._names = [None if other in wanted else other for other in self._names]
        return len(positions)

    def search(self, probes: NDArray[Any], count: int = 5, *, threshold: float | None = None) -> list[list[Match]]:
        """For each probe its most similar entries, the most similar first.

        Args:
            probes: [Q, D] of any length.
            count: entries per probe, 1 or more; fewer are returned from a smaller gallery.
            threshold: lowest cosine, -1 to 1, at which two embeddings count as one identity; a verification report
                states it. Without it `Match.same` is None.

        Raises:
            DataError: the probes are not [Q, D], one is zero or not finite, the count is no whole number of 1 or more,
                or the threshold is no cosine.
        """
        rows, entries, cosine = self._rows(probes), as_count(count), None
        if entries is None:
            raise DataError(f"gallery: got the count {_shown(count)}, expected a whole number of 1 or more")
        if threshold is not None:
            cosine = as_number(threshold)
            if not abs(cosine) <= 1 + 1e-7:
                raise DataError(f"gallery: got the threshold {_shown(threshold)}, expected a cosine of -1 to 1")
        with self._lock.reading():
            found = self._index.search(rows, max(1, min(entries, self._count())))
            return [self._matches(row, positions[positions >= 0], cosine) for row, positions in zip(rows, found)]

    def check_model(self, card: ModelCard) -> None:
        """Check that the gallery's embeddings come from this model.

        Raises:
            ServingError: the model has another embedding size, or other weights than the gallery states.
        """
        if card.emb_dim != self.dimension:
            raise ServingError(
                f"the gallery's embeddings are of {self.dimension}, those of the model in {card.directory} of "
                f"{card.emb_dim}; build the gallery with this model, or take the model that it was built with"
            )
        if self.weights and card.weights and self.weights != card.weights:
            raise ServingError(
                f"the gallery was built with other weights than those of {card.directory}: their "
                f"embeddings have nothing in common; build it again with this model, or take the model that it was "
                f"built with"
            )

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Write the gallery to a folder. Readers of the folder find the earlier gallery or the new one.

        Args:
            folder: a new folder.
            replace: replace the gallery that the folder holds. A folder that holds no gallery is never replaced, nor is
                a gallery that this object has read from the folder, or written there, and that has been changed or
                removed since.

        Raises:
            ServingError: the folder exists and may not be replaced, has been changed, or cannot be written.
        """
        folder = Path(folder)
        is_gallery, key = holds_gallery(folder), _key(folder)
        if os.path.exists(folder) and not (replace and is_gallery):
            replacing = "; to replace the gallery there, give replace=True" if is_gallery else ""
            raise ServingError(f"{folder} exists and is not overwritten; choose another name{replacing}")
        if replace and key in self._revisions and not is_gallery:
            raise ServingError(
                f"{folder}: the gallery there has been removed since it was opened; save under a new name"
            )
        try:
            if not is_gallery:
                with write_folder(folder, ServingError, replace=False) as write:
                    self._write(write.path, key=key)
            elif self._edited == (key, threading.get_ident()):
                self._write(folder, key=key)
            else:
                with lock_folder(folder, ServingError):
                    self._check_unchanged(folder)
                    self._write(folder, key=key)
        except OSError as error:
            raise ServingError(f"{folder}: cannot be written: {error.strerror or error}") from None

    @classmethod
    def open(cls, folder: str | Path) -> Gallery:
        """Read a gallery that `save` wrote, also while it is saved again.

        Raises:
            ServingError: the folder holds no gallery, or the gallery cannot be read or is damaged.
        """
        folder = Path(folder)
        stored = read_gallery(folder)
        gallery = cls(stored.index.dimension, stored.weights, index=stored.index.kind)
        gallery._index, gallery._names = stored.index, list(stored.names)
        gallery._revisions[_key(folder)] = (stored.revision, 0)
        return gallery

    @classmethod
    @contextlib.contextmanager
    def editing(cls, folder: str | Path) -> Iterator[Gallery]:
        """Open a gallery, and save it at the end of the `with` block if it was changed there.

        No other `editing` or `save` of the folder happens meanwhile: they wait. An exception in the block leaves the
        folder as it was.

        Raises:
            ServingError: as `open` and `save`.

        Example:
            >>> embeddings = model.embed(["carl.jpg"])  # before, so that nobody waits for it
            >>> with Gallery.editing("faces") as gallery:
            ...     gallery.add(["carl"], embeddings)
        """
        folder = Path(folder)
        if not holds_gallery(folder):
            cls.open(folder)  # raises
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(folder, ServingError))
            except OSError as error:
                raise ServingError(f"{folder}: cannot be locked: {error.strerror or error}") from None
            gallery = cls.open(folder)
            key = _key(folder)
            gallery._edited = (key, threading.get_ident())
            try:
                yield gallery
                if gallery._revisions[key][1] != gallery._changes:
                    gallery.save(folder, replace=True)
            finally:
                gallery._edited = None

    def _check_unchanged(self, folder: Path) -> None:
        """Refuse to replace what this object has read or written, and another has changed since."""
        seen, _ = self._revisions.get(_key(folder), (None, 0))
        if seen is not None and seen != read_revision(folder):
            raise ServingError(
                f"{folder}: the gallery has been changed since this one was opened or saved there, and saving would "
                f"undo that; open it again and repeat your changes, in `with Gallery.editing(folder) as gallery:`"
            )

    def _write(self, folder: Path, *, key: str) -> None:
        """Write to an existing folder, and remember its revision under the name `key`."""
        with self._lock.writing():
            if self._index.is_worn:
                self._make_index_again()
        with self._lock.reading():
            revision = write_gallery(folder, StoredGallery(self._index, self._names, self.weights))
            self._revisions[key] = (revision, self._changes)

    def _make_index_again(self) -> None:
        """Leave removed entries out of the index, where they were only marked."""
        kept = np.asarray([position for position, name in enumerate(self._names) if name is not None], np.int64)
        made = index_class(self.index)(self.dimension)
        for start in range(0, len(kept), _BLOCK):
            made.add(self._index.rows(kept[start : start + _BLOCK]))
        self._index, self._names = made, [self._names[position] for position in kept]

    def _count(self) -> int:
        return len(self._index) - self._index.removed_count

    def _matches(self, probe: NDArray[np.float32], positions: Positions, threshold: float | None) -> list[Match]:
        """The entries at `positions`, by their cosines in float64; those of faiss depend on the number of probes."""
        found = [
            cosines(self._index.rows(positions[start : start + _BLOCK]), probe)
            for start in range(0, len(positions), _BLOCK)
        ]
        values = np.concatenate(found) if found else np.empty(0)
        order = np.lexsort((positions, -values))
        return [
            Match(str(self._names[positions[at]]), cosine, None if threshold is None else reaches(cosine, threshold))
            for at, cosine in zip(order, values[order].tolist())
        ]

    def _rows(self, embeddings: NDArray[Any]) -> Embeddings:
        """Embeddings [n, D] float32 of unit length."""
        given = np.atleast_2d(as_array(embeddings))
        if given.ndim != 2 or given.shape[1] != self.dimension or given.dtype.kind not in "fiu":
            found = f"{list(given.shape)} of {given.dtype}"
            raise DataError(f"gallery: got embeddings {found}, expected [n, {self.dimension}] of numbers")
        rows = np.empty(given.shape, np.float32)
        for start in range(0, len(given), _BLOCK):
            wide = given[start : start + _BLOCK].astype(np.float64)
            lengths = np.linalg.norm(wide, axis=1, keepdims=True)
            bad_rows = ~(np.isfinite(lengths) & (lengths >= EPSILON))
            if bad_rows.any():
                raise DataError(f"gallery: embedding {start + int(bad_rows.argmax())} is zero or not finite")
            rows[start : start + _BLOCK] = wide / lengths
        return rows


def check_names(names: Sequence[str]) -> list[str]:
    """Names to enroll as a list.

    Raises:
        DataError: they are in no order, or one is empty, no text, or cannot be written in UTF-8.
    """
    if isinstance(names, (Set, Mapping)) or not isinstance(names, Iterable):
        raise DataError(
            f"gallery: got the names as a {type(names).__name__}, expected a list, in the embeddings' order"
        )
    try:
        found = list(names)
    except TypeError:
        raise DataError(f"gallery: got {_shown(names)}, expected a name or a list of names") from None
    for name in found:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"gallery: a name is empty or no text ({name!r}), expected what to call the entry")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"gallery: the name {name!r} is not UTF-8{_in_gbk(name)}, expected text") from None
    return [str(name) for name in found]


def _in_gbk(name: str) -> str:
    """What the bytes of a file's name mean in GBK, for a message; '' where they mean nothing."""
    try:
        return f" (in GBK it is {os.fsencode(name).decode('gbk')!r})"
    except UnicodeError:
        return ""


def _shown(value: Any) -> str:
    """A value that is refused, for a message."""
    return f"{type(value).__name__} {str(value)[:60]!r}"


def _key(folder: Path) -> str:
    return os.path.realpath(folder)


def read_threshold(report: str | Path, name: str | None = None) -> float:
    """The threshold '<set>/threshold' of a verification report.

    Args:
        report: a file with the JSON that `plsc test` printed.
        name: name of the verification set. It may be left out if the report has one set.

    Raises:
        ServingError: the file is no such report, has no set of this name, or has several sets and `name` is left out;
            or the set has no threshold.
    """
    makes = "plsc test ... > report.json writes one"
    try:
        text = Path(report).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ServingError(f"{report}: cannot be read: {getattr(error, 'strerror', None) or error}; {makes}") from None
    if not text.strip():
        raise ServingError(f"{report}: empty, as plsc test leaves it where it fails; run that again")
    try:
        metrics = json.loads(text)
        found = {
            key[: -len("/threshold")]: None if value is None else float(value)
            for key, value in metrics.items()
            if key.endswith("/threshold")
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise ServingError(f"{report}: no report of plsc test: {error}; {makes}") from None
    if not found:
        raise ServingError(f"{report}: no report of plsc test: it has no '<set>/threshold'; {makes}")
    if name is None and len(found) == 1:
        name = next(iter(found))
    if name not in found:
        which = "has several sets" if name is None else f"has no set {name!r}"
        raise ServingError(
            f"{report} {which}; choose one of {', '.join(sorted(found))} with {either('name=...', '--report-set')}"
        )
    threshold = found[name]
    if threshold is None or not -1 <= threshold <= 1 + 1e-9:  # NaN is refused too
        raise ServingError(
            f"{report}: the set {name!r} has the threshold {threshold}, expected a cosine of -1 to 1; a set without "
            f"both same and different pairs gives none"
        )
    return min(threshold, 1.0)  # earlier versions wrote 1.0000000000000002 for 1

"""A `.rec` file as records: both layouts in use, with or without `.idx`, whole or damaged.

The *plain* layout (MXNet's im2rec) is images only. The *face-set* layout adds records without an image:
one of key 0 whose labels are (n, end), so that keys 1 ... n - 1 are the images, and keys n ... end - 1,
one per class, that name the class's range of images.
"""

from __future__ import annotations

import logging
import warnings
from codecs import BOM_UTF8
from pathlib import Path

import numpy as np

from plsc.data.recordio import MAGIC, MAX_LABEL, MAX_LENGTH, FrameFile, ImageRecord, unpack
from plsc.data.records import Record
from plsc.errors import DataError

log = logging.getLogger("plsc")

# Records that opening looks at for gaps in the index: a page each, of a disk perhaps.
_LOOKED_AT = 1024


class RecordIORecords:
    """The images of a `.rec` file, in random order from any number of processes.

    Opening reads the `.idx` and one record; without `.idx` the file is walked once, which reads a page per
    record. Images are in the order of the index, of the keys in the face-set layout, or of the file.

    Args:
        path: the `.rec`, or its `.idx`.
        recover: where the file is damaged, walk it and keep what lies before the damage, instead of stopping
            with an error. `damage` then says what was found.

    Attributes:
        damage: what is wrong with the file, or None. Only ever set with `recover`.
        passed_over: records that hold no image by their layout: header and class ranges.
        num_classes: the first number of the file `property` beside the `.rec`; else one more than the largest
            label, for which every record's header is read. (The number of class ranges is no measure: a class
            whose images do not lie together has several.)

    Raises:
        DataError: missing, empty, cut off or damaged file; an index that does not fit it.
    """

    def __init__(self, path: str | Path, recover: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".rec":
            self.path = self.path.with_suffix(".rec")
        self._frames = FrameFile(self.path)
        self.damage: str | None = None
        self.passed_over = 0
        self._labels: np.ndarray | None = None
        index = self.path.with_suffix(".idx")
        self.is_indexed = index.is_file() and not recover
        if self.is_indexed:
            self._open_indexed(index)
        else:
            self._open_scanned(recover)
        if not len(self._offsets):
            raise DataError(f"{self.path}: the file holds no image" + (f"; {self.damage}" if self.damage else ""))
        self._classes: int | None = _read_property(self.path.parent / "property")
        if (self._classes or 0) > MAX_LABEL + 1:
            log.warning(
                "%s: %d classes, but RecordIO's float32 labels are exact only to %d: larger ones may have "
                "been rounded when the file was written",
                self.path,
                self._classes,
                MAX_LABEL,
            )

    @property
    def format(self) -> str:
        layout = "face-set layout" if self.passed_over else "plain layout"
        return f"RecordIO, {layout}, {'with' if self.is_indexed else 'without'} index"

    @property
    def num_classes(self) -> int:
        if self._classes is None:
            self._classes = int(self.labels.max()) + 1
        return self._classes

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, [n] int64; reads every record's header, once."""
        if self._labels is None:
            self._labels = self._read_labels()
        return self._labels

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        plain = self._frames.read_plain(int(self._offsets[index]))
        if plain is not None:
            return Record(*plain)
        record = self.read(index)
        return Record(record.image, _to_class(record.labels, self.describe(index)))

    def read(self, index: int) -> ImageRecord:
        """Record `index` with all its labels, as they are stored."""
        return unpack(self._frames.read(int(self._offsets[index])), self.describe(index))

    def describe(self, index: int) -> str:
        return f"{self.path}, record {self._keys[index]} at offset {self._offsets[index]}"

    def _open_indexed(self, index: Path) -> None:
        keys, offsets = _read_index(index)
        size = len(self._frames.data)
        last = int(offsets.argmax())
        if offsets[last] >= size or offsets.min() < 0:
            worst = int(offsets.min()) if offsets.min() < 0 else int(offsets[last])
            raise DataError(
                f"{index}: line {int(np.flatnonzero(offsets == worst)[0]) + 1} points at offset {worst}, "
                f"expected 0 to {size - 1}, the size of {self.path}: the .rec is cut off or the index "
                f"belongs to another. Without the .idx the .rec is walked instead"
            )
        # A file cut inside its last record fails here, not in an epoch's midst.
        end = self._frames.end(int(offsets[last]))
        order = np.argsort(keys, kind="stable")
        twice = np.flatnonzero(np.diff(keys[order]) == 0)
        if twice.size:
            raise DataError(f"{index}: key {keys[order][twice[0]]} stands there twice, expected each once")
        if end < size:
            raise DataError(
                f"{index}: the last record it names ends at offset {end}, but {self.path} has {size} "
                f"bytes: the index is cut off or of an older state of the file. Without the .idx the .rec "
                f"is walked instead"
            )
        in_file = np.sort(offsets)
        twice = np.flatnonzero(np.diff(in_file) == 0)
        if twice.size:
            raise DataError(
                f"{index}: two keys point at offset {in_file[twice[0]]}, expected a record for "
                f"each; without the .idx the .rec is walked instead"
            )
        head = None
        if keys[order[0]] == 0:
            head = unpack(self._frames.read(int(offsets[order[0]])), f"{self.path}, record 0")
        if head is None or head.image or not head.flag:
            self._keys, self._offsets = keys, offsets
            self._warn_of_gaps(in_file, step=-(-len(in_file) // _LOOKED_AT))
            return
        keys, offsets = keys[order], offsets[order]
        stop = self._first_without_image(offsets, int(_to_class(head.labels, f"{self.path}, the header record")))
        if not np.array_equal(keys[:stop], np.arange(stop)):
            raise DataError(
                f"{index}: the header record says that keys 1 to {stop - 1} are images, but key "
                f"{_first_gap(keys[:stop])} is not in the index: the set is not whole"
            )
        self._keys, self._offsets = keys[1:stop], offsets[1:stop]
        self.passed_over = len(keys) - stop + 1
        # Of the images the last one only: a look at each would read a page of each.
        has_last = stop < 2 or unpack(self._frames.read(int(offsets[stop - 1])), self.describe(-1)).image
        beyond = np.flatnonzero(self._image_sizes(offsets[stop:]) > 8)
        if not has_last or beyond.size:
            wrong = f"{keys[stop + beyond[0]]} is an" if has_last else f"{keys[stop - 1]} is no"
            raise DataError(
                f"{self.path}: the header record says that keys 1 to {stop - 1} are the images, but key "
                f"{wrong} image: the set is not whole"
            )

    def _warn_of_gaps(self, in_file: np.ndarray, step: int) -> None:
        """Tell of records that the index leaves out: of every `step`-th, whether the next one begins where it ends."""
        starts, nexts = in_file[:-1:step], in_file[1::step]
        words = self._words(starts, 4)
        ends = starts + 8 + (words & MAX_LENGTH)
        ends = np.where(words >> 29 == 0, ends + -ends % 4, nexts)  # one in parts ends later
        ends, nexts = np.append(0, ends), np.append(in_file[0], nexts)
        gaps = np.flatnonzero(ends < nexts)
        if gaps.size:
            log.warning(
                "%s: the index leaves out what lies from offset %d to %d%s; it is not read. Without the .idx "
                "the .rec is walked instead",
                self.path,
                ends[gaps[0]],
                nexts[gaps[0]],
                f", and in {gaps.size - 1} more places" if gaps.size > 1 else "",
            )

    def _first_without_image(self, offsets: np.ndarray, stated: int) -> int:
        # The header states the count as float32, which past 2^24 is only near the true one.
        doubt = int(np.spacing(np.float32(stated)))
        if doubt <= 1:
            return stated
        for key in range(max(1, stated - doubt), min(stated + doubt + 1, len(offsets))):
            if not unpack(self._frames.read(int(offsets[key])), f"{self.path}, record {key}").image:
                return key
        return len(offsets) if len(offsets) <= stated + doubt else stated

    def _open_scanned(self, recover: bool) -> None:
        offsets, damage = self._frames.scan()
        if damage is not None:
            if not recover:
                raise damage
            self.damage = str(damage)
            log.warning("%s; reading the %d records before it", damage, len(offsets))
        self._note_what_the_index_names(offsets)
        keys = self._words(offsets, 16).astype(np.int64) | self._words(offsets, 20).astype(np.int64) << 32
        is_structure = (self._words(offsets, 8) > 0) & (self._image_sizes(offsets) == 0)
        self._keys, self._offsets = keys[~is_structure], offsets[~is_structure]
        self.passed_over = int(is_structure.sum())
        heads = np.flatnonzero(is_structure & (keys == 0))
        if len(heads) != 1:
            if self.passed_over:
                log.warning(
                    "%s: passed over %d records without an image, and there is no header record that says "
                    "how many images to expect",
                    self.path,
                    self.passed_over,
                )
            return
        head = unpack(self._frames.read(int(offsets[heads[0]])), f"{self.path}, the header record")
        stated = _to_class(head.labels, f"{self.path}, the header record") - 1
        if stated < MAX_LABEL and stated != len(self._offsets):
            message = f"{self.path}: the header record says {stated} images, found {len(self._offsets)}"
            if not recover:
                raise DataError(f"{message}: the set is not whole; recover=True reads what is there")
            self.damage = self.damage or message
            log.warning(message)

    def _image_sizes(self, offsets: np.ndarray) -> np.ndarray:
        """The bytes of each record behind its labels; 0 of the header and the class ranges of the face-set layout."""
        lengths, flags = self._words(offsets, 4) & MAX_LENGTH, self._words(offsets, 8)
        return lengths - 24 - 4 * flags.astype(np.int64)

    def _note_what_the_index_names(self, offsets: np.ndarray) -> None:
        """Records that the `.idx` names and the walk did not find: of a file cut between two records nothing else
        tells."""
        try:
            _, named = _read_index(self.path.with_suffix(".idx"))
        except DataError:
            return
        lost = int((~np.isin(named, offsets)).sum())
        if lost and self.damage is None:
            self.damage = (
                f"{self.path}: the index names {len(named)} records, of which {lost} were not found: the "
                f"file is cut off, or the index belongs to another"
            )
            log.warning(self.damage)

    def _words(self, offsets: np.ndarray, position: int) -> np.ndarray:
        """The uint32 at `position` in each record's frame; the file's last word where the record is too short."""
        words = np.frombuffer(self._frames.data, "<u4", len(self._frames.data) // 4)
        return words[np.minimum((offsets + position) // 4, len(words) - 1)]

    def _read_labels(self) -> np.ndarray:
        if self.is_indexed and not self.passed_over and len(self._offsets) > _LOOKED_AT:
            self._warn_of_gaps(np.sort(self._offsets), step=1)
        # A magic inside a header cuts it in parts, and a damaged offset is not on a boundary: read those one by one.
        odd = (self._offsets % 4 != 0) | (self._words(self._offsets, 4) >> 29 != 0)
        odd |= self._words(self._offsets, 0) != MAGIC
        flags = self._words(self._offsets, 8)
        odd |= (self._words(self._offsets, 4) & MAX_LENGTH) < 24 + 4 * np.minimum(flags, 1)
        values = np.where(flags > 0, self._words(self._offsets, 32), self._words(self._offsets, 12)).view("<f4")
        with np.errstate(invalid="ignore"):
            labels = values.astype(np.int64)
            odd |= (labels != values) | (labels < 0)
        for index in np.flatnonzero(odd):
            labels[index] = _to_class(self.read(int(index)).labels, self.describe(int(index)))
        return labels


def _to_class(labels: np.ndarray, where: str) -> int:
    """A class from a label vector: its first number, which must be whole and not negative."""
    value = float(labels[0]) if labels.size else float("nan")
    if not (value >= 0 and value == int(min(value, 2.0**62))):
        shown = labels[:4].tolist()
        raise DataError(f"{where}: label {shown} is no class, expected a whole number of 0 or more first")
    return int(value)


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys [n] and offsets [n] int64, in the file's order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an empty file and a fraction are only warned of
            pairs = np.loadtxt(path, np.int64, comments=None, ndmin=2, encoding="utf-8-sig")
        if pairs.shape[1] == 2:
            return pairs[:, 0], pairs[:, 1]
    except OSError as error:
        raise DataError(f"{path}: the index cannot be read: {error.strerror}") from None
    except (ValueError, OverflowError, Warning):
        pass
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if parts and not (len(parts) == 2 and all(part.isdigit() and len(part) < 19 for part in parts)):
            raise DataError(f"{path}, line {number}: got {line[:80]!r}, expected 'key<TAB>offset'")
    raise DataError(
        f"{path}: the index is empty or no text, expected one 'key<TAB>offset' per line; without the .idx "
        f"the .rec is walked instead"
    )


def _read_property(path: Path) -> int | None:
    """The class count in a face set's `property` file, as in '85742,112,112'; None where there is no such file."""
    try:
        text = path.read_bytes().removeprefix(BOM_UTF8)
    except OSError:
        return None
    count = text.split(b",")[0].strip()
    if not count.isdigit() or len(count) > 12 or int(count) < 1:
        raise DataError(f"{path}: got {text[:80]!r}, expected the class count first, as in '85742,112,112'")
    return int(count)


def _first_gap(keys: np.ndarray) -> int:
    return int(np.flatnonzero(np.append(keys, -1) != np.arange(len(keys) + 1))[0])

"""A RecordIO file, `.rec`, as records: in either layout, with or without `.idx`, whole or damaged.

The *plain* layout (MXNet's im2rec) holds images only. The *face-set* layout adds records without an image. The header
record, key 0, has the labels (n, end): keys 1 ... n - 1 are the images, and keys n ... end - 1 hold one range of image
keys each, one per class.
"""

from __future__ import annotations

import functools
import logging
import warnings
from codecs import BOM_UTF8
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plsc.data.recordio import HEADER_SIZE, MAGIC, MAX_LABEL, MAX_LENGTH, FrameFile, ImageRecord, unpack
from plsc.data.records import Labels, Record, Records
from plsc.errors import DataError
from plsc.utils.files import reading_error
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# Records that opening reads to find gaps in the index. Each costs a page of the disk.
_GAP_SAMPLES = 1024

_WITHOUT_INDEX = "Without the .idx the .rec is walked instead"

_Offsets = npt.NDArray[np.int64]


class RecordIORecords(Records):
    """The images of a `.rec` file, read in any order from any number of processes.

    Opening reads the `.idx` and one record. Without `.idx`, opening walks the file, which reads a page per record.
    Images are in the order of the index, of the keys in the face-set layout, or of the file.

    Args:
        path: the `.rec`, or its `.idx`.
        recover: where the file is damaged, walk it and keep the records before the damage, instead of raising an
            error. `damage` then says what was found.

    Attributes:
        damage: what is wrong with the file, or None. Set only with `recover`.
        is_indexed: whether the `.idx` was used.
        without_image: the number of records that hold no image by their layout: header and class ranges.
        num_classes: the first number of the file `property` beside the `.rec`; else one more than the largest label,
            for which the header of every record is read at first use. (The number of class ranges does not give
            it: a class whose images do not lie together has several.)

    Raises:
        DataError: the file is missing, empty, cut off or damaged, or the index does not fit the file.
        StorageError: the system cannot read the file.

    Example:
        >>> records = RecordIORecords("faces/train.rec")
        >>> records.format
        'RecordIO, face-set layout, with index'
    """

    uses_global_random = False

    def __init__(self, path: str | Path, recover: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".rec":
            self.path = self.path.with_suffix(".rec")
        self._frames = FrameFile(self.path)
        self.without_image = 0
        index = self.path.with_suffix(".idx")
        self.is_indexed = index.is_file() and not recover
        if self.is_indexed:
            self._open_indexed(index)
        else:
            self._open_scanned(recover)
        if not len(self._offsets):
            raise DataError(f"{self.path}: the file holds no image" + (f"; {self.damage}" if self.damage else ""))
        layout = "face-set layout" if self.without_image else "plain layout"
        self.format = f"RecordIO, {layout}, {'with' if self.is_indexed else 'without'} index"
        self._num_classes = _read_property(self.path.parent / "property")
        if (self._num_classes or 0) > MAX_LABEL + 1:
            log.warning(
                "%s: %s, but RecordIO's float32 labels are exact only to %d: larger ones may have "
                "been rounded when the file was written",
                self.path,
                counted(self._num_classes or 0, "class"),
                MAX_LABEL,
            )

    @property
    def num_classes(self) -> int:
        if self._num_classes is None:
            self._num_classes = int(self.labels.max()) + 1
        return self._num_classes

    @num_classes.setter
    def num_classes(self, num_classes: int) -> None:
        self._num_classes = num_classes

    @functools.cached_property
    def labels(self) -> Labels:
        """The class of every image, [n] int64; read from the header of every record at first use."""
        if self.is_indexed and not self.without_image and len(self._offsets) > _GAP_SAMPLES:
            self._warn_of_gaps(np.sort(self._offsets), step=1)
        # A header that holds the magic is cut in parts, and a damaged offset lies on no boundary: such records are read
        # one by one.
        odd = (self._offsets % 4 != 0) | (self._words(self._offsets, 4) >> 29 != 0)
        odd |= self._words(self._offsets, 0) != MAGIC
        flags = self._words(self._offsets, 8)
        odd |= (self._words(self._offsets, 4) & MAX_LENGTH) < HEADER_SIZE + 4 * np.minimum(flags, 1)
        values = np.where(flags > 0, self._words(self._offsets, 32), self._words(self._offsets, 12)).view("<f4")
        with np.errstate(invalid="ignore"):
            labels: Labels = values.astype(np.int64)
            odd |= (labels != values) | (labels < 0)
        for index in np.flatnonzero(odd):
            labels[index] = _to_class(self.read(int(index)).labels, self.describe(int(index)))
        return labels

    def known_labels(self) -> Labels | None:
        """`labels` where they have been read: each costs a page of the disk."""
        return self.labels if "labels" in vars(self) else None

    def labels_at(self, indices: npt.NDArray[np.int64]) -> Labels | None:
        """The classes of some records, [k] int64; None where one of them is damaged."""
        try:
            return np.asarray([self[int(index)].label for index in indices], np.int64)
        except DataError:
            return None

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
        self._check_index(index, keys, offsets)
        order = np.argsort(keys, kind="stable")
        first = int(order[0])
        header = None
        if keys[first] == 0:
            header = unpack(self._frames.read(int(offsets[first])), f"{self.path}, record 0")
        if header is None or header.image or not header.flag:
            self._keys, self._offsets = keys, offsets
            self._warn_of_gaps(np.sort(offsets), step=-(-len(offsets) // _GAP_SAMPLES))
        else:
            self._open_face_set(index, keys[order], offsets[order], header)

    def _check_index(self, index: Path, keys: _Offsets, offsets: _Offsets) -> None:
        """Compare an index with the file.

        Raises:
            DataError: an offset lies outside the file, a key or an offset occurs twice, the last record is damaged,
                or records follow it.
        """
        size = len(self._frames.data)
        last = int(offsets.argmax())
        if offsets[last] >= size or offsets.min() < 0:
            worst = int(offsets.min()) if offsets.min() < 0 else int(offsets[last])
            raise DataError(
                f"{index}: line {int(np.flatnonzero(offsets == worst)[0]) + 1} points at offset {worst}, "
                f"expected 0 to {size - 1}, the size of {self.path}: the .rec is cut off or the index "
                f"belongs to another. {_WITHOUT_INDEX}"
            )
        # The end of the last record is read here, so that a file cut inside it fails when it is opened.
        end = self._frames.end(int(offsets[last]))
        key = _first_repeated(keys)
        if key is not None:
            raise DataError(f"{index}: key {key} stands there twice, expected each once")
        if end < size:
            raise DataError(
                f"{index}: the last record it names ends at offset {end}, but {self.path} has {size} "
                f"bytes: the index is cut off or of an older state of the file. {_WITHOUT_INDEX}"
            )
        offset = _first_repeated(offsets)
        if offset is not None:
            raise DataError(f"{index}: two keys point at offset {offset}, expected a record for each. {_WITHOUT_INDEX}")

    def _open_face_set(self, index: Path, keys: _Offsets, offsets: _Offsets, header: ImageRecord) -> None:
        """Take the images out of a face-set layout, whose keys are in ascending order here, the header first.

        Raises:
            DataError: the header states another number of images.
        """
        stop = self._first_without_image(offsets, int(_to_class(header.labels, f"{self.path}, the header record")))
        if not np.array_equal(keys[:stop], np.arange(stop)):
            raise DataError(
                f"{index}: the header record says that keys 1 to {stop - 1} are images, but key "
                f"{_first_gap(keys[:stop])} is not in the index: the set is not whole"
            )
        self._keys, self._offsets = keys[1:stop], offsets[1:stop]
        self.without_image = len(keys) - stop + 1
        # Of the images, only the last is checked: each check reads a page.
        has_last = stop < 2 or unpack(self._frames.read(int(offsets[stop - 1])), self.describe(-1)).image
        beyond = np.flatnonzero(self._image_sizes(offsets[stop:]) > 8)
        if not has_last or beyond.size:
            wrong = f"{keys[stop + beyond[0]]} is an" if has_last else f"{keys[stop - 1]} is no"
            raise DataError(
                f"{self.path}: the header record says that keys 1 to {stop - 1} are the images, but key "
                f"{wrong} image: the set is not whole"
            )

    def _warn_of_gaps(self, in_file: _Offsets, step: int) -> None:
        """Warn where a record of the index does not begin at the end of the one before; checks every `step`-th.

        Args:
            in_file: the offsets in ascending order.
            step: 1 or more.
        """
        starts, nexts = in_file[:-1:step], in_file[1::step]
        words = self._words(starts, 4)
        ends = starts + 8 + (words & MAX_LENGTH)
        ends = np.where(words >> 29 == 0, ends + -ends % 4, nexts)  # a record in parts ends later
        ends, nexts = np.append(0, ends), np.append(in_file[0], nexts)
        gaps = np.flatnonzero(ends < nexts)
        if gaps.size:
            log.warning(
                "%s: the index leaves out what lies from offset %d to %d%s; it is not read. %s",
                self.path,
                ends[gaps[0]],
                nexts[gaps[0]],
                f", and in {counted(gaps.size - 1, 'more place')}" if gaps.size > 1 else "",
                _WITHOUT_INDEX,
            )

    def _first_without_image(self, offsets: _Offsets, stated: int) -> int:
        """The first key without an image. The header states it as float32, which is not exact past 2^24."""
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
            log.warning("%s; reading what is before it: %s", damage, counted(len(offsets), "record"))
        self._note_missing_records(offsets)
        keys = self._words(offsets, 16).astype(np.int64) | self._words(offsets, 20).astype(np.int64) << 32
        is_structure = (self._words(offsets, 8) > 0) & (self._image_sizes(offsets) == 0)
        self._keys, self._offsets = keys[~is_structure], offsets[~is_structure]
        self.without_image = int(is_structure.sum())
        heads = np.flatnonzero(is_structure & (keys == 0))
        if len(heads) != 1:
            if self.without_image:
                log.warning(
                    "%s: ignored %s without an image, and there is no header record that says "
                    "how many images to expect",
                    self.path,
                    counted(self.without_image, "record"),
                )
            return
        head = unpack(self._frames.read(int(offsets[heads[0]])), f"{self.path}, the header record")
        stated = _to_class(head.labels, f"{self.path}, the header record") - 1
        if stated < MAX_LABEL and stated != len(self._offsets):
            message = f"{self.path}: the header record says {counted(stated, 'image')}, found {len(self._offsets)}"
            if not recover:
                raise DataError(f"{message}: the set is not whole; recover=True reads what is there")
            self.damage = self.damage or message
            log.warning("%s", message)

    def _image_sizes(self, offsets: _Offsets) -> _Offsets:
        """The bytes of each record behind its labels; 0 for the header and the class ranges of the face-set layout."""
        lengths, flags = self._words(offsets, 4) & MAX_LENGTH, self._words(offsets, 8)
        return lengths - HEADER_SIZE - 4 * flags.astype(np.int64)

    def _note_missing_records(self, offsets: _Offsets) -> None:
        """Set `damage` where the `.idx` names records that the walk did not find. Nothing else shows that a file was
        cut between two records."""
        try:
            _, named = _read_index(self.path.with_suffix(".idx"))
        except DataError:
            return
        lost = int((~np.isin(named, offsets)).sum())
        if lost and self.damage is None:
            self.damage = (
                f"{self.path}: the index names {counted(len(named), 'record')}, {lost} of them not found: the file "
                f" is cut off, or the index belongs to another"
            )
            log.warning("%s", self.damage)

    def _words(self, offsets: _Offsets, position: int) -> npt.NDArray[np.uint32]:
        """The uint32 at `position` in the frame of each record; the last word of the file where that lies beyond."""
        words = np.frombuffer(self._frames.data, "<u4", len(self._frames.data) // 4)
        return words[np.minimum((offsets + position) // 4, len(words) - 1)]


def _to_class(labels: npt.NDArray[np.float32], where: str) -> int:
    """The class in a label vector: the first number, which must be whole and not negative."""
    value = float(labels[0]) if labels.size else float("nan")
    if not (value >= 0 and value == int(min(value, 2.0**62))):
        shown = labels[:4].tolist()
        raise DataError(f"{where}: label {shown} is no class, expected a whole number of 0 or more first")
    return int(value)


def _read_index(path: Path) -> tuple[_Offsets, _Offsets]:
    """Keys [n] and offsets [n] int64, in the order of the lines."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns of an empty file and of a fraction
            pairs = np.loadtxt(path, np.int64, comments=None, ndmin=2, encoding="utf-8-sig")
        if pairs.shape[1] == 2:
            return pairs[:, 0], pairs[:, 1]
    except OSError as error:
        raise reading_error(f"{path}: the index cannot be read", error) from None
    except (ValueError, OverflowError, Warning):
        pass
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        parts = line.split()
        if parts and not (len(parts) == 2 and all(part.isdigit() and len(part) < 19 for part in parts)):
            raise DataError(f"{path}, line {number}: got {line[:80]!r}, expected 'key<TAB>offset'")
    raise DataError(f"{path}: the index is empty or no text, expected one 'key<TAB>offset' per line. {_WITHOUT_INDEX}")


def _read_property(path: Path) -> int | None:
    """The class count in the `property` file of a face set, as in '85742,112,112'; None without such a file."""
    try:
        text = path.read_bytes().removeprefix(BOM_UTF8)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise reading_error(f"{path}: the class count cannot be read", error) from None
    count = text.split(b",")[0].strip()
    if not count.isdigit() or len(count) > 12 or int(count) < 1:
        raise DataError(f"{path}: got {text[:80]!r}, expected the class count first, as in '85742,112,112'")
    return int(count)


def _first_repeated(values: _Offsets) -> int | None:
    """The least value that occurs twice, or None."""
    ascending = np.sort(values)
    repeated = np.flatnonzero(np.diff(ascending) == 0)
    return int(ascending[repeated[0]]) if repeated.size else None


def _first_gap(keys: _Offsets) -> int:
    """The least number from 0 that is missing in keys in ascending order."""
    return int(np.flatnonzero(np.append(keys, -1) != np.arange(len(keys) + 1))[0])

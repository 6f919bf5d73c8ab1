"""The RecordIO file format, in which most public face sets are published: frames, reader and writer, without MXNet.

A `.rec` file is a sequence of frames, each on a four-byte boundary and little-endian:

    magic 0xced7230a | 3 bits continuation, 29 bits length | payload | zeros up to the boundary

Continuation 0 is a whole record. Where a payload holds the magic on a four-byte boundary, the writer cuts the payload
there and leaves the magic out. The parts are marked 1 (first), 2 (between) and 3 (last), and the reader inserts the
magic again. The payload of an image record is

    flag u32 | label f32 | id u64 | id2 u64 | flag further labels f32 | encoded image

With flag 0, `label` is the one label of the record. A `.idx` beside the `.rec` has one `key<TAB>offset` per line.
Sources: dmlc-core's recordio.h (frames) and MXNet's recordio module (image records).
"""

from __future__ import annotations

import mmap
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plsc.errors import DataError
from plsc.utils.files import map_file, open_output, sync
from plsc.utils.hints import argument
from plsc.utils.plural import counted

MAGIC = 0xCED7230A
MAX_LENGTH = (1 << 29) - 1
# Labels are stored as float32, which holds every whole number up to here.
MAX_LABEL = 1 << 24
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_FRAME = struct.Struct("<II")
_IMAGE_HEADER = struct.Struct("<IfQQ")
_PLAIN = struct.Struct("<IIIf")  # frame, flag and label
HEADER_SIZE = _IMAGE_HEADER.size


class ImageRecord(NamedTuple):
    """The fields of one record.

    Attributes:
        labels: [L] float32; L is 1 for the plain layout.
        key: the id that the writer gave the record.
        flag: 0 for one label in the fixed part, else the number of labels that follow it.
        image: the encoded image, as it was written; empty in header records.
    """

    labels: npt.NDArray[np.float32]
    key: int
    flag: int
    image: bytes


class FrameFile:
    """Random access to the records of a `.rec` by their offsets, through a memory map.

    The map opens at first use. Forked processes share it; a pickled object opens its own. Every length field is checked
    against the size of the file before memory is allocated.

    Args:
        path: the `.rec` file.

    Raises:
        DataError: at first use, the file is missing or empty.

    Example:
        >>> frames = FrameFile("faces/train.rec")
        >>> offsets, damage = frames.scan()
        >>> unpack(frames.read(offsets[0]), "record 0").labels
        array([0.], dtype=float32)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_map": None}

    @property
    def data(self) -> mmap.mmap:
        """The whole file, mapped for reading."""
        if self._map is None:
            self._map = map_file(self.path)
        return self._map

    def read_plain(self, offset: int) -> tuple[bytes, int] | None:
        """(image, label) of a whole record with one label and no fault, in one copy. Nearly all records are such.

        None for any other record: use `read` and `unpack`.
        """
        data = self._map or self.data
        if not 0 <= offset <= len(data) - 8 - HEADER_SIZE:
            return None
        magic, word, flag, label = _PLAIN.unpack_from(data, offset)
        stop = offset + 8 + word
        if magic != MAGIC or not HEADER_SIZE <= word <= MAX_LENGTH or stop > len(data):
            return None
        if flag or not 0 <= label <= MAX_LABEL or label % 1:
            return None
        return data[offset + 8 + HEADER_SIZE : stop], int(label)

    def read(self, offset: int) -> bytes:
        """The payload of the record at `offset`, its parts joined.

        Raises:
            DataError: no whole record starts there; names the offset, what was found and what was expected.
        """
        return _MAGIC_BYTES.join([self.data[start:stop] for start, stop in self._parts(offset)])

    def end(self, offset: int) -> int:
        """The offset where the record at `offset`, with all its parts, ends and the next record begins.

        Raises:
            DataError: no whole record starts there.
        """
        return _align(self._parts(offset)[-1][1])

    def scan(self) -> tuple[npt.NDArray[np.int64], DataError | None]:
        """Walk the whole file.

        Returns:
            The offsets [n] int64 of the whole records before the first damage, and the damage or None.
        """
        size = len(self.data)
        offsets, offset, begin = array("q"), 0, -1
        try:
            while offset < size:
                continuation, _, stop = self._frame(offset)
                # Parts 2 and 3 are legal only after a part 1, and parts 0 and 1 only outside of a record.
                if (continuation in (2, 3)) != (begin >= 0):
                    expected = "a further (2) or last (3) part of a record" if begin >= 0 else "the start of one (0, 1)"
                    raise self._damage(offset, f"found part {continuation}", expected)
                if begin < 0:
                    begin = offset
                if continuation in (0, 3):
                    offsets.append(begin)
                    begin = -1
                offset = _align(stop)
            if begin >= 0:
                raise self._damage(size, "the file ends", f"a further part of the record that began at offset {begin}")
        except DataError as error:
            return np.asarray(offsets, np.int64), error
        return np.asarray(offsets, np.int64), None

    def _parts(self, offset: int) -> list[tuple[int, int]]:
        """(begin, end) of each part of the record at `offset`."""
        continuation, start, stop = self._frame(offset)
        parts = [(start, stop)]
        if continuation not in (0, 1):
            raise self._damage(
                offset,
                f"found part {continuation} of a record cut in parts",
                "a whole record (0) or its first part (1)",
            )
        while continuation not in (0, 3):
            offset = _align(stop)
            continuation, start, stop = self._frame(offset)
            if continuation not in (2, 3):
                raise self._damage(offset, f"found part {continuation}", "a further (2) or last (3) part of a record")
            parts.append((start, stop))
        return parts

    def _frame(self, offset: int) -> tuple[int, int, int]:
        """(continuation, begin, end) of the payload of the frame at `offset`."""
        data = self._map or self.data
        size = len(data)
        if not 0 <= offset <= size - 8:
            raise self._damage(offset, f"the file has {counted(size, 'byte')}", "a record's 8-byte frame")
        magic, word = _FRAME.unpack_from(data, offset)
        if magic != MAGIC:
            raise self._damage(offset, f"found 0x{magic:08x}", f"the magic 0x{MAGIC:08x} that starts a record")
        start, length = offset + 8, word & MAX_LENGTH
        if start + length > size:
            raise self._damage(
                offset,
                f"the file ends {counted(start + length - size, 'byte')} too early, at {size}",
                f"a record of {counted(length, 'byte')}",
            )
        if word >> 29 > 3:
            raise self._damage(offset, f"found continuation flag {word >> 29}", "0, 1, 2 or 3")
        return word >> 29, start, start + length

    def _damage(self, offset: int, found: str, expected: str) -> DataError:
        return DataError(
            f"{self.path}, offset {offset}: {found}, expected {expected}; the file is damaged, cut off or "
            f"does not belong to its index. What lies before the damage can be read with "
            f"{argument('recover', True)}"
        )


def unpack(payload: bytes, where: str) -> ImageRecord:
    """The fields of an image record's payload.

    Args:
        payload: what `FrameFile.read` returned.
        where: the record, for messages.

    Raises:
        DataError: the payload is shorter than its header says.
    """
    if len(payload) < HEADER_SIZE:
        raise DataError(
            f"{where}: the record has {counted(len(payload), 'byte')}, expected at least {HEADER_SIZE} for "
            f"the header of an image record"
        )
    flag, label, key, _ = _IMAGE_HEADER.unpack_from(payload)
    end = HEADER_SIZE + 4 * flag
    if end > len(payload):
        raise DataError(
            f"{where}: the record says {counted(flag, 'label')} and has {counted(len(payload), 'byte')}, expected at "
            f"least {end}"
        )
    labels = np.frombuffer(payload, "<f4", flag, HEADER_SIZE) if flag else np.array([label], np.float32)
    return ImageRecord(labels, key, flag, payload[end:])


def pack(label: int | float | Sequence[float], key: int, *, image: bytes) -> bytes:
    """The payload of an image record: one label in the fixed part, several as a vector."""
    if not isinstance(label, Sequence):
        return _IMAGE_HEADER.pack(0, float(label), key, 0) + image
    labels = np.asarray(label, "<f4")
    return _IMAGE_HEADER.pack(labels.size, 0.0, key, 0) + labels.tobytes() + image


def frames(payload: bytes) -> bytes:
    """The bytes of a payload in the file: framed, cut where it holds the magic, padded."""
    words = np.frombuffer(payload, "<u4", len(payload) // 4)
    cuts = (4 * np.flatnonzero(words == MAGIC)).tolist()
    starts, stops = [0] + [cut + 4 for cut in cuts], cuts + [len(payload)]
    pieces = []
    for part, (start, stop) in enumerate(zip(starts, stops)):
        if stop - start > MAX_LENGTH:
            raise DataError(
                f"a record of {counted(len(payload), 'byte')} is too long for RecordIO, expected less than 512 MiB"
            )
        continuation = 0 if not cuts else 1 if part == 0 else 3 if part == len(cuts) else 2
        pieces += [_FRAME.pack(MAGIC, continuation << 29 | stop - start), payload[start:stop]]
    return b"".join(pieces) + bytes(-len(payload) % 4)


class RecordIOWriter:
    """Write `<name>.rec` and `<name>.idx`.

    Args:
        path: the `.rec`; the `.idx` lies beside it. Neither may exist.
        resume_at: (bytes of the .rec, bytes of the .idx) as `position` returned them: cut both files there and append.
            By default start new files.

    Raises:
        DataError: a file exists already, or a file to resume is shorter than `resume_at`.

    Example:
        >>> with RecordIOWriter("train.rec") as writer:
        ...     writer.write(0, 3, image=open("a.jpg", "rb").read())
    """

    def __init__(self, path: str | Path, resume_at: Sequence[int] | None = None) -> None:
        self.path = Path(path)
        self._files = [
            open_output(file, length)
            for file, length in zip((self.path, self.path.with_suffix(".idx")), resume_at or (None, None))
        ]

    def write(self, key: int, label: int | float | Sequence[float], *, image: bytes) -> None:
        """Append one record.

        Raises:
            DataError: float32 cannot hold the label exactly, so reading would give another class.
        """
        if not isinstance(label, Sequence) and not 0 <= label <= MAX_LABEL:
            raise DataError(
                f"record {key}: label {label} does not fit RecordIO, which stores labels as float32 and is "
                f"exact from 0 to {MAX_LABEL}; choose another format, for example tar"
            )
        rec, idx = self._files
        idx.write(f"{key}\t{rec.tell()}\n".encode())
        rec.write(frames(pack(label, key, image=image)))

    def position(self) -> list[int]:
        """Flush to the disk and return the lengths of both files."""
        for file in self._files:
            sync(file)
        return [file.tell() for file in self._files]

    def close(self) -> None:
        """Flush to the disk and close both files."""
        for file in self._files:
            sync(file)
            file.close()

    def __enter__(self) -> RecordIOWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _align(offset: int) -> int:
    return offset + (-offset) % 4

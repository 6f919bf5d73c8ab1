"""Files as the formats use them: mapped for reading, read by lines, opened to append, digested, flushed to the disk."""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import mmap
import os
import resource
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, TypeVar

from plsc.errors import DataError, PLSCError, StorageError
from plsc.utils.plural import counted

# Errors of the system that say what is wrong with one file. Any other says nothing about the file.
_OF_THE_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EILSEQ,
        errno.ENXIO,
        errno.ENODEV,
    }
)
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files of a process (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of the system (fs.file-max)",
    errno.ENOMEM: "free memory, or use fewer reader processes",
    errno.EIO: "check the disk (dmesg)",
    errno.ESTALE: "mount the network disk again",
}

_Opened = TypeVar("_Opened")


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def append(path: Path, data: bytes) -> None:
    """Append to a file all of `data` or nothing. It is opened anew: its folder may have been replaced meanwhile.

    Raises:
        OSError: the system refuses.
    """
    with open(path, "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def reading_error(what: str, error: OSError) -> DataError | StorageError:
    """The error to raise where the system refuses to read.

    Args:
        what: the file and what it is, as "label.txt: the list cannot be read".
        error: of the system.

    Returns:
        `DataError` where this one file is missing or unreadable, else `StorageError`.
    """
    reason = error.strerror or str(error)
    if error.errno is None or error.errno in _OF_THE_FILE:
        return DataError(f"{what}: {reason}")
    remedy = _REMEDIES.get(error.errno, "check the disk")
    return StorageError(f"{what}: {reason}. The system fails, not the data: {remedy}")


def map_file(path: Path) -> mmap.mmap:
    """Map a file into memory for reading.

    Raises:
        DataError: the file is missing, unreadable or empty.
        StorageError: the system cannot read it.
    """
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise reading_error(f"{path}: the file cannot be read", error) from None
    except ValueError:
        raise DataError(f"{path}: the file is empty (0 bytes)") from None


@contextlib.contextmanager
def utf8_folder(folder: Path) -> Iterator[Path]:
    """A path of an existing folder that libraries take which pass paths on as UTF-8, as Paddle and ONNX do.

    The name of a folder may be bytes of another encoding, as GBK, which Python holds as surrogates. Such a folder has
    the path of an open descriptor, for as long as the `with` block runs.
    """
    try:
        str(folder).encode()
        yield folder
        return
    except UnicodeEncodeError:
        opened = os.open(folder, os.O_RDONLY)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{opened}")
    finally:
        os.close(opened)


class OpenFiles(Generic[_Opened]):
    """The files of one source, by number. Each is opened at first use, and a bounded number stays open.

    All objects of this class in a process share the bound: a quarter of the files that the system lets the process have
    open. Beyond it, the file that was opened first is closed; in a random order it is as likely as any other to be the
    next one. What was returned stays usable for as long as something refers to it. Threads may share an object. Forked
    processes have their own copies, and a pickle holds no open file.

    Args:
        paths: of the files, which were opened before.
        open_file: opens one.

    Example:
        >>> shards = OpenFiles([Path("0.tar"), Path("1.tar")], map_file)
        >>> shards[1][:512]
    """

    def __init__(self, paths: Sequence[Path], open_file: Callable[[Path], _Opened]) -> None:
        self._paths, self._open_file = paths, open_file
        self._opened: dict[int, _Opened] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __getitem__(self, number: int) -> _Opened:
        """File `number`.

        Raises:
            StorageError: it cannot be opened.
        """
        # No lock: a process forked while another thread holds it would wait for ever. Each line below is safe in
        # threads; two threads that open the same file at once open it twice, and the bound still holds.
        opened = self._opened.get(number)
        if opened is None:
            _make_space()
            try:
                opened = self._opened[number] = self._open_file(self._paths[number])
            except DataError as error:
                raise StorageError(f"{error}. The file could be read when the data set was opened") from None
            _OPENED.append((weakref.ref(self), number))
        return opened


# What all `OpenFiles` of this process have open, in the order of opening.
_OPENED: collections.deque[tuple[weakref.ref[OpenFiles[Any]], int]] = collections.deque()


def _make_space() -> None:
    """Close files until one more may be opened."""
    while len(_OPENED) >= _most_open():
        try:
            owner, number = _OPENED.popleft()
        except IndexError:  # other threads were faster
            return
        files = owner()
        if files is not None:
            files._opened.pop(number, None)


def _most_open() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if allowed == resource.RLIM_INFINITY else max(8, min(allowed // 4, 4096))


def text_lines(path: Path, what: str, *, newline: str | None = None) -> Iterator[str]:
    """The lines of a text in UTF-8, with their ends. Only line feed, carriage return and the two together end a line.

    `str.splitlines` would also end lines at U+0085, U+2028 and others, which names of files may hold. A byte-order mark
    is left out, at the beginning of any line, since files are joined.

    Args:
        path: the file.
        what: it is, for messages, as "the list".
        newline: as for `open`.

    Raises:
        DataError: the file is missing, unreadable or not UTF-8; names the line.
        StorageError: the system cannot read it.
    """
    try:
        with open(path, encoding="utf-8", newline=newline) as file:
            for line in file:
                yield line.lstrip("\ufeff")
    except OSError as error:
        raise reading_error(f"{path}: {what} cannot be read", error) from None
    except UnicodeDecodeError:
        raise DataError(_describe_encoding(path)) from None
    except ValueError as error:  # a path with a zero byte
        raise DataError(f"{path}: {what} cannot be read: {error}") from None


def _describe_encoding(path: Path) -> str:
    """What is wrong with a text that is not UTF-8."""
    with open(path, "rb") as file:
        number, line = next((number, line) for number, line in enumerate(file, start=1) if not _is_utf8(line))
    return f"{path}, line {number}: found {line[:60].strip()!r}, which is not UTF-8 text; {_encoding_hint(line)}"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _encoding_hint(line: bytes) -> str:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it begins as UTF-16 does: convert it with iconv -f UTF-16 -t UTF-8"
    try:
        as_gbk = line.decode("gbk").strip()
    except UnicodeDecodeError:
        return "convert it to UTF-8 with iconv"
    return f"in GBK the line is {as_gbk[:120]!r}: if that is right, convert it with iconv -f GBK -t UTF-8"


def check_has_folder(path: Path, error: type[PLSCError]) -> None:
    """Raise `error` where the folder of a file that is to be written does not exist."""
    if not path.parent.is_dir():
        raise error(f"{path}: there is no folder {path.parent}; make it first")


def open_output(path: Path, length: int | None = None) -> BinaryIO:
    """Open a file to append to.

    Args:
        path: the file.
        length: cut an existing file to this many bytes and append there. By default make a new file.

    Raises:
        DataError: the new file exists, the existing file is shorter than `length`, or the system refuses.
    """
    try:
        file = open(path, "xb" if length is None else "r+b")  # noqa: SIM115
    except FileExistsError:
        raise DataError(f"{path} exists already; nothing is overwritten: remove it or choose another name") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None
    if length is not None:
        size = file.seek(0, os.SEEK_END)
        if size < length:
            file.close()
            raise DataError(
                f"{path}: has {counted(size, 'byte')}, expected at least {length} to continue from; start again"
            )
        file.truncate(length)
        file.seek(length)
    return file


def sync(file: IO[bytes] | IO[str]) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Flush a closed file, or the entries of a folder, to the disk.

    Raises:
        OSError: there is no such path, or the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder and say so with EINVAL.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)


def size_text(size: int) -> str:
    """A number of bytes as text: '1.5 GiB'."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"

"""Checks that several sources share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from plsc.errors import DataError, PLSCError
from plsc.utils.files import reading_error


def check_index(index: int, count: int) -> None:
    """Raise `IndexError` unless `index` is -count to count - 1."""
    if not -count <= index < count:
        raise IndexError(f"index {index} is out of range, expected {-count} to {count - 1}")


@contextlib.contextmanager
def own_errors(path: Path, fault: str) -> Iterator[None]:
    """Raise `DataError` in place of any exception of a reader from another library, and `StorageError` or `DataError`
    in place of one of the system.

    Args:
        path: the file, for the message.
        fault: what is wrong where the system is not the cause, as "cannot be read as Parquet".
    """
    try:
        yield
    except PLSCError:
        raise
    except Exception as error:  # a damaged file makes such readers raise exceptions of any kind
        if isinstance(error, OSError) and error.errno is not None:
            raise reading_error(f"{path}: cannot be read", error) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: {fault}: {reason}") from None

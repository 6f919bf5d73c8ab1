"""A folder that is written aside and takes its place whole, the earlier one giving way."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Callable, Iterator, Type

from plsc.errors import PLSCError


@contextlib.contextmanager
def replacing(folder: Path, error: Type[PLSCError],
              carry_over: Callable[[Path, Path], None] = lambda old, new: None) -> Iterator[Path]:
    """An empty folder to write to. It takes the place of `folder` at the end, or vanishes where an exception leaves.

    An interruption loses nothing: what was set aside is found and put right by the next call.

    Args:
        folder: may exist; whether it may be replaced is the caller's to ask.
        error: raised for what the file system refuses.
        carry_over: called with (old, new) folders where there was one, before the old one is deleted.
    """
    # Links and dots cannot be renamed.
    folder = folder.resolve()
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    try:
        if folder == Path.cwd():
            raise error(f"{folder} is the current folder and cannot be replaced; name another")
        _put_right(folder, old, carry_over)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _put_right(folder, old, carry_over)
    except OSError as reason:
        raise error(f"{folder}: cannot be written: {reason.strerror or reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_right(folder: Path, old: Path, carry_over: Callable[[Path, Path], None]) -> None:
    if not old.exists():
        return
    if not folder.exists():
        old.rename(folder)
        return
    carry_over(old, folder)
    shutil.rmtree(old)

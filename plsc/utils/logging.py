"""The library's log: one logger named 'plsc', by default shown from rank 0 only; and its progress bars.

Both go to standard error, which may be closed, full, a broken pipe, or an object of the application's. None of that
ends a program: what cannot be shown is left out.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from plsc.errors import PLSCError
from plsc.utils.json_text import JSON_ESCAPES

_Item = TypeVar("_Item")

_is_quiet = False


class _ProgressBarHandler(logging.Handler):
    """Writes lines to standard error above a progress bar of tqdm."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if sys.stderr is not None:  # for None, tqdm takes standard output
            with contextlib.suppress(OSError, ValueError, AttributeError):
                tqdm.write(text, file=sys.stderr)


def be_quiet() -> None:
    """From now on show warnings and errors only, and no progress bar, in this process."""
    global _is_quiet
    _is_quiet = True


def show_log(is_main: bool) -> None:
    """Show the library's log, unless the application has set handlers of the logger 'plsc'.

    Args:
        is_main: True for rank 0, which shows all messages. Other ranks show only warnings and errors, and so does it
            after `be_quiet`.
    """
    guard_standard_error()
    # Paddle warns of this at every first training step with batch normalization; it is no fault of the user's.
    warnings.filterwarnings("ignore", "When training, we now always track global mean and variance")
    logger = logging.getLogger("plsc")
    if logger.handlers:
        return
    handler = _ProgressBarHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main and not _is_quiet else logging.WARNING)
    logger.propagate = False


def is_terminal(stream: Any) -> bool:
    """Whether a stream, for example `sys.stderr`, is a terminal; False where it is None, closed or lacks `isatty`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def shows_bars() -> bool:
    """Whether progress is shown as a bar: on a terminal, unless `be_quiet` was called."""
    return is_terminal(sys.stderr) and not _is_quiet


def progress_bar(
    items: Iterable[_Item] = (),
    title: str | None = None,
    *,
    total: int | None = None,
    **options: Any,
) -> tqdm[_Item]:
    """A progress bar on standard error where `shows_bars`, else one that shows nothing.

    Args:
        items: what to loop over; by default `update` of the result tells the progress.
        title: in front of the bar.
        total: number of items, where len(items) does not say it.
        options: further ones of `tqdm`.

    Example:
        >>> for image in progress_bar(images, "decoding"):
        ...     decode(image)
    """
    return tqdm(items, title, total, disable=not shows_bars(), file=lossy(sys.stderr), **options)


class _Lossy(io.FileIO):
    """Writes to a descriptor. What cannot be written is lost."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            written = super().write(data)
            if written is not None:
                return written
        return len(data)


class _Result(io.FileIO):
    """Writes to a descriptor. What cannot be written is an error of the library, once; then it is lost."""

    has_failed = False

    def write(self, data: Any) -> int:
        try:
            return len(data) if self.has_failed else super().write(data)
        except BrokenPipeError:  # a reader such as `head` has seen enough
            self.has_failed = True  # what is flushed at the end of the process would fail again
            raise
        except OSError as error:
            self.has_failed = True
            raise PLSCError(f"standard output cannot be written: {error.strerror}") from None


def _reopened(stream: Any, file: type[io.FileIO]) -> Any:
    if type(stream) is not io.TextIOWrapper or isinstance(getattr(stream.buffer, "raw", None), file):
        return stream
    try:
        buffer = io.BufferedWriter(file(stream.fileno(), "w", closefd=False))
    except (OSError, ValueError):  # closed, or no file
        return stream
    is_line_buffered = file is _Lossy or stream.line_buffering
    # A file's name may hold characters that the terminal's encoding lacks.
    return io.TextIOWrapper(buffer, stream.encoding, JSON_ESCAPES, line_buffering=is_line_buffered)


def lossy(stream: Any) -> Any:
    """A stream to the same file of which no call fails, or `stream` itself if Python did not open it as a file.

    After a failure, a stream of Python's keeps the text and raises the same error at every later `flush`: when a
    process is started, when another library prints, and at the end, where the exit status becomes 120.

    Example:
        >>> print("saved", file=lossy(sys.stdout))
    """
    return _reopened(stream, _Lossy)


def guard_standard_output() -> None:
    """Make a `PLSCError` of a result that cannot be written to standard output."""
    sys.stdout = _reopened(sys.stdout, _Result)


def guard_standard_error() -> None:
    """Make all that Python prints to standard error harmless where it cannot be written; hold closed descriptors.

    Paddle prints when it is imported, Python's `warnings` and many libraries do at any time.
    """
    hold_standard_descriptors()
    sys.stderr = lossy(sys.stderr)


def hold_standard_descriptors() -> None:
    """Open the null device in place of descriptors 0, 1 and 2 that are closed.

    The next file that is opened, for example a checkpoint, would get such a descriptor, and what C libraries print to
    standard error would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)

"""The library's log: one logger named 'plsc', by default shown from rank 0 only; and its progress bars.

Both go to standard error, which may be closed, full, a broken pipe, or an object of the application's. None of that
ends a program: what cannot be shown is left out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

_Item = TypeVar("_Item")


class _ProgressBarHandler(logging.Handler):
    """Writes lines to standard error above a progress bar of tqdm."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if sys.stderr is not None:  # for None, tqdm takes standard output
            with contextlib.suppress(OSError, ValueError, AttributeError):
                tqdm.write(text, file=sys.stderr)


def show_log(is_main: bool) -> None:
    """Show the library's log, unless the application has set handlers of the logger 'plsc'.

    Args:
        is_main: True for rank 0, which shows all messages; other ranks show only warnings and errors.
    """
    hold_standard_descriptors()
    # Paddle warns of this at every first training step with batch normalization; it is no fault of the user's.
    warnings.filterwarnings("ignore", "When training, we now always track global mean and variance")
    logger = logging.getLogger("plsc")
    if logger.handlers:
        return
    handler = _ProgressBarHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    logger.propagate = False


def is_terminal(stream: Any) -> bool:
    """Whether a stream, for example `sys.stderr`, is a terminal; False where it is None, closed or lacks `isatty`."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def progress_bar(
    items: Iterable[_Item] = (),
    title: str | None = None,
    *,
    total: int | None = None,
    **options: Any,
) -> tqdm[_Item]:
    """A progress bar on standard error where that is a terminal, else one that shows nothing.

    Args:
        items: what to loop over; by default `update` of the result tells the progress.
        title: in front of the bar.
        total: number of items, where len(items) does not say it.
        options: further ones of `tqdm`.

    Example:
        >>> for image in progress_bar(images, "decoding"):
        ...     decode(image)
    """
    return tqdm(items, title, total, disable=not is_terminal(sys.stderr), **options)


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

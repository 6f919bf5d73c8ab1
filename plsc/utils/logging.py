"""The library's log: one logger named 'plsc', shown by default from rank 0 only."""

from __future__ import annotations

import logging
import sys
import warnings

from tqdm import tqdm


class _BesideBar(logging.Handler):
    """Writes lines to standard error without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def show_log(is_main: bool) -> None:
    """Show the library's log unless the application has given the logger handlers of its own.

    Args:
        is_main: whether this rank speaks for all; others show warnings only, with their origin.
    """
    # Paddle says so at each first training step of batch normalization; nobody asked.
    warnings.filterwarnings("ignore", "When training, we now always track global mean and variance")
    logger = logging.getLogger("plsc")
    if logger.handlers:
        return
    handler = _BesideBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if is_main else logging.WARNING)
    logger.propagate = False

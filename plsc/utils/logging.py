"""The library's log: one logger named 'plsc', by default shown from rank 0 only."""

from __future__ import annotations

import logging
import sys
import warnings

from tqdm import tqdm


class _ProgressBarHandler(logging.Handler):
    """Writes lines to standard error above a progress bar of tqdm."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def show_log(is_main: bool) -> None:
    """Show the library's log, unless the application has set handlers of the logger 'plsc'.

    Args:
        is_main: True for rank 0, which shows all messages; other ranks show only warnings and errors.
    """
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

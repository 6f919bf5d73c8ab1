"""Which checkpoints of a run are kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from plsc.checkpoint import delete_checkpoint, list_checkpoints, run_of
from plsc.config import Config
from plsc.engine.about import read_metrics

log = logging.getLogger("plsc")


def superseded(
    checkpoints: Sequence[Path], *, epochs: int, within: int, every: int | None = None, best: Path | None = None
) -> list[Path]:
    """The checkpoints that are not kept.

    Args:
        checkpoints: in the order in which training reached them.
        epochs: newest checkpoints of whole epochs that are kept.
        within: newest checkpoints within an epoch that are kept.
        every: one whole epoch in so many is kept: with 10 the folders 9, 19, ...
        best: is kept.

    Example:
        >>> superseded([Path("0"), Path("1"), Path("2"), Path("3.50")], epochs=1, within=1, every=2)
        [PosixPath('0')]
    """
    whole = [path for path in checkpoints if "." not in path.name]
    parts = [path for path in checkpoints if "." in path.name]
    kept = {*whole[-epochs:], *parts[-within:], best}
    if every is not None:
        kept.update(path for path in whole if (int(path.name) + 1) % every == 0)
    return [path for path in checkpoints if path not in kept]


def best_of(checkpoints: Sequence[Path], metric: str) -> Path | None:
    """The checkpoint with the highest metric, the newest of equals; None where none has it.

    Args:
        checkpoints: in the order in which training reached them.
        metric: as 'lfw.accuracy' or 'lfw/accuracy'.
    """
    best, highest = None, -math.inf
    for path in checkpoints:
        value = (read_metrics(path) or {}).get(metric.replace(".", "/", 1))
        if value is not None and value >= highest:
            best, highest = path, value
    return best


def prune(config: Config, *, newest: Path) -> list[Path]:
    """Delete the checkpoints of the run that wrote `newest`, a sound one, in its folder that `config` does not keep.

    One that cannot be deleted costs space and nothing else: a warning names it.

    Returns:
        Those deleted.
    """
    run = run_of(newest)
    checkpoints = [path for path in list_checkpoints(newest.parent) if run_of(path) == run]
    best = None if config.keep_best is None else best_of(checkpoints, config.keep_best)
    doomed = superseded(
        checkpoints,
        epochs=config.max_last_checkpoint_num,
        within=config.save_keep,
        every=config.keep_every,
        best=best,
    )
    pruned = []
    for path in doomed:
        if path != newest:
            try:
                delete_checkpoint(path)
            except OSError as error:
                log.warning("%s: an old checkpoint cannot be deleted: %s; delete it, or its disk fills up", path, error)
            else:
                pruned.append(path)
    return pruned

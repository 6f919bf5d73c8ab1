"""A copy of what a rank saves, made between two steps, so that training goes on while it is written."""

from __future__ import annotations

import dataclasses
import logging
import math
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Part, block_rows
from plsc.config import Config
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.errors import CheckpointError
from plsc.utils.files import size_text
from plsc.utils.hints import setter
from plsc.utils.memory import NO_LIMIT, process_memory, shared_memory

log = logging.getLogger("plsc")

# Share of the free memory that a copy may take; the rest is for what later steps take beyond those before.
_MOST_MEMORY = 0.8
_PAGE_BYTES = 4096


class Layout(NamedTuple):
    """What a part takes in memory, and whether that may be taken once more."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    may_copy: bool = True

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def layouts(parts: Iterable[Part]) -> dict[str, Layout]:
    """The layout of each part, by its name."""
    return {
        part.name: Layout(tuple(part.data.shape), np.dtype(part.data.dtype), may_copy=part.may_copy) for part in parts
    }


class Snapshot:
    """Memory for one copy of this rank's parts. Every rank makes one, and calls the same methods together.

    The memory is kept between saves: to touch new memory takes several times as long as to copy into memory that was
    used before. Where there is not enough of it, or a part may not be copied, no copies are made. All ranks decide
    alike, once.

    Args:
        config: `async_save`.
        collectives: over all ranks.
    """

    def __init__(self, config: Config, collectives: Collectives) -> None:
        self._config, self._collectives = config, collectives
        self._is_used: bool | None = None
        self._arrays: dict[str, NDArray[Any]] = {}
        self._touching: threading.Thread | None = None

    @property
    def is_prepared(self) -> bool:
        """Whether `prepare` was called, or `copy`."""
        return self._is_used is not None

    @property
    def is_used(self) -> bool:
        """Whether copies are made, once that is decided."""
        return bool(self._is_used)

    def prepare(self, wanted: Mapping[str, Layout]) -> None:
        """Decide whether copies are made, and take memory for one of these parts, in a thread."""
        if self._takes(wanted):
            new = list(self._arrays.values())
            self._touching = threading.Thread(target=_touch, args=(new,), name="plsc snapshot", daemon=True)
            self._touching.start()

    def copy(self, parts: Sequence[Part]) -> list[Part] | None:
        """The same parts with a copy of their data, which the next call overwrites; None where no copies are made."""
        if not self._takes(layouts(parts)):
            return None
        if self._touching is not None:
            self._touching.join()
            self._touching = None
        return [dataclasses.replace(part, data=self._fill(part)) for part in parts]

    def _takes(self, wanted: Mapping[str, Layout]) -> bool:
        """Whether copies are made, and there is memory for this one; the same on all ranks."""
        if self._is_used is None:
            self._is_used = self._choose(wanted)
        if self._is_used:
            try:
                agree(lambda: self._reserve(wanted), self._collectives, error=CheckpointError)
            except CheckpointError as error:
                self._is_used, self._arrays = False, {}
                log.warning("training waits while checkpoints are written: no memory for a copy: %s", error)
        return self._is_used

    def _choose(self, wanted: Mapping[str, Layout]) -> bool:
        """Whether copies are made: the parts and `async_save` allow it; with 'auto', there is memory for them."""
        mode, is_main = self._config.async_save, self._collectives.topology.is_main
        ranks = self._collectives.gather_objects(_needs(wanted, rank=self._collectives.topology.rank))
        if mode == "off":
            reason = f"{setter('async_save', False)} asks for it"
        else:
            reason = _kept_elsewhere(ranks) or ("" if mode == "on" else _too_large(ranks))
        if is_main and reason:
            # What was asked for is no surprise.
            log.log(
                logging.INFO if mode == "off" else logging.WARNING,
                "training waits while checkpoints are written: %s",
                reason,
            )
        elif is_main:
            size = size_text(sum(rank.size for rank in ranks))
            log.info("training goes on while checkpoints are written, from a copy of %s in memory", size)
        return not reason

    def _reserve(self, wanted: Mapping[str, Layout]) -> None:
        """Take the memory for a copy, and give back what other parts had."""
        held = {
            name: array for name, array in self._arrays.items() if wanted.get(name) == Layout(array.shape, array.dtype)
        }
        self._arrays = held
        for name, layout in wanted.items():
            if name not in held:
                held[name] = np.empty(layout.shape, layout.dtype)

    def _fill(self, part: Part) -> NDArray[Any]:
        array = self._arrays[part.name]
        # A copy of hundreds of MiB at once takes half the time: the C library then writes past the cache.
        rows, size = np.atleast_1d(array), part.num_rows if part.is_view else block_rows(part.row_bytes)
        for start in range(0, part.num_rows, max(size, 1)):
            stop = min(start + size, part.num_rows)
            rows[start:stop] = part.read(start, stop)
        return array


class _Needs(NamedTuple):
    """What a rank needs for a copy.

    Attributes:
        size: bytes.
        pools: where the memory is from, and the bytes that are free there. Ranks share those of one name.
        kept_elsewhere: the first part that may not be copied; '' where there is none.
    """

    size: int
    pools: dict[str, int]
    kept_elsewhere: str


def _needs(wanted: Mapping[str, Layout], *, rank: int) -> _Needs:
    host, own = socket.gethostname(), process_memory()
    pools = {host: shared_memory()}
    if own < NO_LIMIT:
        pools[f"{host}, within the limit of the process of rank {rank} (ulimit)"] = own
    kept = next((name for name, layout in wanted.items() if not layout.may_copy), "")
    return _Needs(sum(layout.size for layout in wanted.values()), pools, kept)


def _kept_elsewhere(ranks: Sequence[_Needs]) -> str:
    """Why a part may not be copied; '' where all may."""
    name = next((rank.kept_elsewhere for rank in ranks if rank.kept_elsewhere), "")
    return name and f"{name} is not kept in memory, so no copy of it is made there"


def _too_large(ranks: Sequence[_Needs]) -> str:
    """Why there is not enough memory for copies; '' where there is."""
    for pool in dict.fromkeys(pool for rank in ranks for pool in rank.pools):
        wanted = sum(rank.size for rank in ranks if pool in rank.pools)
        free = min(rank.pools[pool] for rank in ranks if pool in rank.pools)
        if wanted > _MOST_MEMORY * free:
            return (
                f"a copy takes {size_text(wanted)} on {pool}, where {size_text(free)} of memory is free; "
                f"{setter('async_save', True)} makes the copy all the same"
            )
    return ""


def _touch(arrays: Iterable[NDArray[Any]]) -> None:
    """Have the system give each page of the arrays, which it does when the page is first written to."""
    for array in arrays:
        array.reshape(-1).view(np.uint8)[::_PAGE_BYTES] = 0

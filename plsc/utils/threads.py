"""`map` on threads: results in order, a bounded number of items in work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def thread_map(
    function: Callable[[_In], _Out], items: Iterable[_In], *, threads: int | None = None, ahead: int | None = None
) -> Iterator[_Out]:
    """Yield `function(item)` for each item, in the order of the items.

    Threads gain where `function` releases the interpreter lock, as OpenCV and file reading do. `items` is read in
    the caller's thread, no further than `ahead` items past the last result, so that an endless iterator works and
    memory stays bounded. An exception of `function` is raised in its item's turn; items not begun are then dropped.

    Args:
        function: called in several threads at once.
        items: what to call it with.
        threads: 1 or more; by default the number of cores, 8 at most.
        ahead: items in work or finished before their turn, 1 or more; by default 4 per thread.

    Example:
        >>> list(thread_map(str.upper, ["a", "b"], threads=2))
        ['A', 'B']
    """
    threads = threads or min(8, os.cpu_count() or 1)
    ahead = ahead or 4 * threads
    waiting: deque[Future[_Out]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

"""The next draw of a sampled step, whose rows are read from a disk while this step computes.

The classes of a draw are the positive ones, which the next batch decides, and those of the highest random numbers,
which the seed decides. The pages of the latter are asked for in a thread. The draw is the same as without.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import paddle
from numpy.typing import NDArray


class NextDraw:
    """Asks for the rows of the draw of a seed.

    Args:
        seed: of the draw.
        scores: [S], the random numbers of the classes.
        count: how many classes are drawn.
        expect: is told the classes [count] in ascending order, in a thread.
    """

    def __init__(
        self, seed: int, scores: paddle.Tensor, *, count: int, expect: Callable[[NDArray[np.int64]], None]
    ) -> None:
        self.seed, self.scores = seed, scores
        self._classes: NDArray[np.int64] = np.zeros(0, np.int64)
        own = scores.numpy()  # of a CPU's tensor a copy too, since the draw marks the scores of the positive ones

        def run() -> None:
            least = np.partition(own, len(own) - count)[len(own) - count]
            self._classes = np.flatnonzero(own >= least)
            expect(self._classes)

        self._thread = threading.Thread(target=run, name="plsc next draw", daemon=True)
        self._thread.start()

    def classes(self) -> NDArray[np.int64]:
        """What was asked for; waits until it was."""
        self._thread.join()
        return self._classes

"""What is measured at logged steps beside the loss: numbers and histograms, read once for all observers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple


class Histogram(NamedTuple):
    """How many numbers lie in each of B fixed bins. The first and the last bin also hold what lies beyond them.

    Attributes:
        edges: B + 1 numbers in ascending order; bin i is edges[i] up to below edges[i + 1].
        counts: B whole numbers.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def occupied(self) -> list[list[float]]:
        """[from, to, count] of each bin that is not empty."""
        bins = zip(self.edges, self.edges[1:], self.counts)
        return [[float(f"{low:.4g}"), float(f"{high:.4g}"), count] for low, high, count in bins if count]


def from_counts_above(edges: Sequence[float], above: Sequence[float], total: float) -> Histogram:
    """The histogram of numbers of which it is known how many are at or above each edge.

    Args:
        edges: B + 1 numbers in ascending order.
        above: for each inner edge, B - 1 of them, how many numbers are at or above it.
        total: how many there are.
    """
    bounds = [total, *above, 0.0]
    return Histogram(tuple(edges), tuple(round(here - after) for here, after in zip(bounds, bounds[1:])))


class Measured(NamedTuple):
    """Attributes: `scalars`, numbers by name; `histograms`, by name."""

    scalars: Mapping[str, float] = MappingProxyType({})
    histograms: Mapping[str, Histogram] = MappingProxyType({})


class Measures:
    """What was measured at a step. It is read when the first observer asks, which waits for the device.

    Args:
        measure: reads it, called at most once; by default nothing was measured.
    """

    def __init__(self, measure: Callable[[], Measured] | None = None) -> None:
        self._measure = measure
        self._measured = Measured()

    @property
    def scalars(self) -> Mapping[str, float]:
        """Numbers by name. docs/logging.md lists them with their units."""
        return self._read().scalars

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """Histograms by name, over the global batch."""
        return self._read().histograms

    def _read(self) -> Measured:
        if self._measure is not None:
            self._measured, self._measure = self._measure(), None
        return self._measured

"""The best verification of a run: by which metric a run is judged, and where it was best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Best(NamedTuple):
    """The best verification so far.

    Attributes:
        name: of the metric, as '<set>/<metric>'.
        value: of it.
        step: the steps done before.
    """

    name: str
    value: float
    step: int

    def __str__(self) -> str:
        return f"best {self.name} {self.value:.4f}"


def better(best: Best | None, keep_best: str | None, results: Mapping[str, float], *, step: int) -> Best | None:
    """The better of the best verification so far and a new one; of equal ones the earlier.

    Args:
        best: so far.
        keep_best: as the setting, 'lfw.accuracy'; None for none.
        results: of the new one, by '<set>/<metric>'.
        step: the steps done before.
    """
    name = main_metric(keep_best, results)
    if name is None or math.isnan(results[name]) or (best is not None and best.name != name):
        return best
    return Best(name, results[name], step) if best is None or results[name] > best.value else best


def main_metric(keep_best: str | None, results: Mapping[str, float]) -> str | None:
    """The name of the result that a run is judged by: that of `keep_best`, else the first accuracy, else top-1.

    Args:
        keep_best: as the setting, 'lfw.accuracy'; None for none.
        results: by '<set>/<metric>'.
    """
    names = [keep_best.replace(".", "/")] if keep_best else []
    names += [name for name in results if name.endswith("/accuracy")]
    return next((name for name in [*names, "val/top1"] if name in results), None)

"""A run of Weights & Biases, offline: `wandb sync output/logs/wandb/wandb/offline-run-*` uploads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plsc.engine.observers.loggers.base import Logger, Opening, arguments_of_init
from plsc.engine.observers.measures import Histogram


class WeightsAndBiases(Logger):
    """Scalars, histograms and settings. WANDB_MODE=online sends them at once.

    Without what the package collects by itself: the command line, the address of the repository, the output, the
    machine. A resumed run has the same identifier; offline it is a further folder, and `wandb sync` uploads all of an
    identifier as one run.
    """

    name, package = "wandb", "wandb"

    def open(self, opening: Opening) -> None:
        settings = self.module.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._logged: Any = self.module.init(
            **arguments_of_init(opening, variables="WANDB"), dir=str(opening.folder), settings=settings
        )

    def write(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        shown = {
            f"{name}_histogram": self.module.Histogram(np_histogram=(list(found.counts), list(found.edges)))
            for name, found in histograms.items()
        }
        self._logged.log({**scalars, **shown}, step=step)

    def close(self, is_complete: bool) -> None:
        self._logged.finish(exit_code=0 if is_complete else 1)

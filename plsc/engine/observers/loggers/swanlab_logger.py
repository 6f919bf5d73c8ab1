"""A run of SwanLab, offline: `swanlab sync output/logs/swanlab/run-*` uploads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plsc.engine.observers.loggers.base import Logger, Opening, arguments_of_init
from plsc.engine.observers.measures import Histogram


class SwanLab(Logger):
    """Scalars and settings. SWANLAB_MODE chooses another mode than offline, as `local` or `online`.

    Without what the package collects by itself: command line, repository, packages, output, machine.
    """

    name, package = "swanlab", "swanlab"

    def open(self, opening: Opening) -> None:
        self._logged: Any = self.module.init(
            **arguments_of_init(opening, variables="SWANLAB"),
            log_dir=str(opening.folder),
            settings=self.module.Settings(
                interactive=False,
                terminal={"proxy_type": "none"},
                probe=dict.fromkeys(
                    ("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor"), False
                ),
            ),
        )

    def write(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        self._logged.log(dict(scalars), step=step)

    def close(self, is_complete: bool) -> None:
        self._logged.finish()

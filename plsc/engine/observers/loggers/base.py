"""What the loggers have in common: where they write, when, and under which identifier a resumed run goes on."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from plsc.engine.about import saved_settings
from plsc.engine.observers import Observer, Run, Step
from plsc.engine.observers.measures import Histogram
from plsc.utils.hints import setter
from plsc.utils.lazy import require
from plsc.utils.locations import without_credentials

log = logging.getLogger("plsc")

LOGS = "logs"
"""The folder in `model_save_dir` that holds a folder for each logger."""
_ID_FILE = "plsc-id.txt"


class Opening(NamedTuple):
    """What a logger begins with.

    Attributes:
        folder: its own, which exists.
        id: of the record, a word of 16 characters of hexadecimal digits, unless the logger has kept another one.
        is_resumed: whether the record of that identifier exists, and is gone on with.
        first_step: steps done before. What a resumed record has of later steps is trained again.
        name: of the run.
        settings: of the run, without credentials.
    """

    folder: Path
    id: str
    is_resumed: bool
    first_step: int
    name: str
    settings: dict[str, Any]


def arguments_of_init(opening: Opening, *, variables: str) -> dict[str, Any]:
    """What `init` of Weights & Biases takes, and SwanLab's after its example.

    Args:
        opening: what the record begins with.
        variables: `<variables>_PROJECT` and `<variables>_MODE` of the environment choose the project and the mode.
    """
    return {
        "project": os.environ.get(f"{variables}_PROJECT", "plsc"),
        "mode": os.environ.get(f"{variables}_MODE", "offline"),
        "id": opening.id,
        "name": opening.name,
        "resume": "allow",
        "config": opening.settings,
    }


class Logger(Observer, ABC):
    """Writes logged steps and verifications for a tool, on rank 0.

    A subclass defines `open`, `write` and `close`. Where it fails after it was opened, an error says so once, and
    training goes on without it.

    Attributes:
        name: in the setting `loggers`, and of the extra of the package.
        package: that is needed.

    Raises:
        MissingDependencyError: the package is not installed.
    """

    name: ClassVar[str]
    package: ClassVar[str]

    def __init__(self) -> None:
        self.module: ModuleType = require(self.package, self.package, purpose=setter("loggers", self.name))
        self._is_open = self._has_failed = False

    @abstractmethod
    def open(self, opening: Opening) -> str | None:
        """Begin a record, or go on with it; returns an identifier to keep in place of `opening.id`, if any."""

    @abstractmethod
    def write(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        """Record finite numbers, and histograms, of a step."""

    @abstractmethod
    def close(self, is_complete: bool) -> None:
        """End the record, for now; `is_complete` where training is."""

    def on_start(self, run: Run) -> None:
        self._run = run

    def on_step(self, step: Step) -> None:
        if self._run.is_logged(step):
            self._record(step.number, {**step.values, **step.measures.scalars}, step.measures.histograms)

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        self._record(step.number, results, {})

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        if self._is_open:
            self._try(lambda: self.close(error is None))
        self._is_open = False

    def _record(self, step: int, values: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        if not self._is_open:  # not in on_start: a run with no step left leaves the record as it is
            self._begin()
            self._is_open = True
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._try(lambda: self.write(step, finite, histograms))

    def _begin(self) -> None:
        config, saved = self._run.config, self._run.checkpoint
        root = Path(config.model_save_dir)
        folder = root / LOGS / self.name
        folder.mkdir(parents=True, exist_ok=True)
        is_own = saved is not None and saved.resolve().parent == root.resolve()
        kept = _read_id(folder) if is_own else ""
        opening = Opening(
            folder=folder,
            id=kept or secrets.token_hex(8),
            is_resumed=bool(kept),
            first_step=self._run.first_step,
            name=root.resolve().name,
            settings=saved_settings(config),
        )
        chosen = self.open(opening) or opening.id
        (folder / _ID_FILE).write_text(chosen + "\n")

    def _try(self, call: Any) -> None:
        if self._has_failed:
            return
        try:
            call()
        except Exception as error:  # a package of others may raise any
            self._has_failed = True
            told = without_credentials(f"{type(error).__name__}: {error}")
            log.error("logger %s: %s; training goes on without it", self.name, told)


def _read_id(folder: Path) -> str:
    """The identifier of the record in a folder; '' for none."""
    try:
        text = (folder / _ID_FILE).read_text().strip()
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch(r"[\w-]{1,64}", text) else ""

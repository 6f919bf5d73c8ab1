"""Verification within a training run: which step was verified, and what was found for its checkpoint.

A checkpoint is complete some steps after it was begun, and its step is verified meanwhile. What is found is kept until
there is a folder for `metrics.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from numpy.typing import NDArray

from plsc.config import Config
from plsc.data.verification_set import VerificationSet
from plsc.distributed.collectives import Collectives
from plsc.engine.about import METRICS, About, write_metrics
from plsc.engine.closed_set import ClosedSet
from plsc.engine.details import CLASSES, SCORES, Details
from plsc.engine.evaluator import evaluate
from plsc.engine.state import average_statistics, gather_statistics
from plsc.engine.uploads import Uploader
from plsc.losses import Head


class Verifier:
    """Verifies the network between steps. Every rank makes one, and calls the same methods together.

    Args:
        config: the settings.
        backbone: the network.
        sets: the verification sets.
        closed: images of the classes of training; None for none.
        head: the last layer, whose class centers `closed` needs.
        collectives: over all ranks.
        uploads: to a remote `model_save_dir`; None where it is local.

    Attributes:
        interrupted: of the checkpoint that training resumes from, where the run before ended between its saving and
            its verification; else None.
    """

    def __init__(
        self,
        config: Config,
        backbone: paddle.nn.Layer,
        *,
        sets: Sequence[VerificationSet],
        closed: ClosedSet | None,
        head: Head,
        collectives: Collectives,
        uploads: Uploader | None,
    ) -> None:
        self._config, self._backbone, self._sets = config, backbone, sets
        self._closed, self._head = closed, head
        self._collectives, self._uploads = collectives, uploads
        self.interrupted: About | None = None
        self._averaged: int | None = None
        self._verified: int | None = None
        self._found: dict[int, tuple[dict[str, float], Details]] = {}

    def verify(self, step: int, *, is_stopped: Callable[[], bool]) -> dict[str, float] | None:
        """The metrics of every verification set, and of the closed set, after a step, as '<set>/<metric>'.

        Args:
            step: steps done.
            is_stopped: asked before each batch; where it is True on any rank, verification ends on all.

        Returns:
            None where it was stopped.

        Raises:
            PLSCError: an image cannot be decoded or an embedding is not finite; on all ranks.
        """
        self.average_statistics(step)
        details = Details(self._closed)
        results = evaluate(
            self._config,
            self._backbone,
            sets=self._sets,
            collectives=self._collectives,
            is_stopped=is_stopped,
            closed=self._closed,
            centers=self._head.centers,
            on_pairs=details.add_pairs,
            on_report=details.add_classes,
        )
        if results is not None:
            self._verified, self._found[step] = step, (results, details)
        return results

    def is_verified(self, step: int) -> bool:
        """Whether this step was the last to be verified, in this run."""
        return step == self._verified

    def record(self, step: int, path: Path) -> None:
        """Write what the verification of a step found into the folder of that step's checkpoint, which is complete."""
        metrics, details = self._found.get(step, ({}, None))
        if metrics and details is not None and self._collectives.topology.is_main:
            details.write(path)  # first: where there are metrics, nothing more is written
            write_metrics(path, metrics)
            for file in (SCORES, CLASSES, METRICS):
                if self._uploads is not None and (path / file).is_file():
                    self._uploads.on_added(path / file)
        self._found = {later: found for later, found in self._found.items() if later > step}

    def average_statistics(self, step: int) -> None:
        """Replace running statistics by their average over ranks, once after a step.

        What is saved is then what is verified: an average of equal numbers is rounded.
        """
        if not self.is_averaged(step):
            self._averaged = step
            average_statistics(self._backbone, self._collectives)

    def is_averaged(self, step: int) -> bool:
        """Whether the running statistics are averages over ranks since this step."""
        return step == self._averaged

    def own_statistics(self, step: int) -> Mapping[str, NDArray[Any]]:
        """The running statistics of each rank, for a checkpoint of this step; empty where they are averages."""
        return {} if self.is_averaged(step) else gather_statistics(self._backbone, self._collectives)

    def resume(self, about: About, metrics: Mapping[str, float] | None, *, has_statistics: bool, is_due: bool) -> None:
        """Take over what a checkpoint says, once it is loaded.

        Args:
            about: what it says.
            metrics: found after it was saved; None for none. The same on all ranks.
            has_statistics: whether it holds the running statistics of each rank.
            is_due: whether a run that is not interrupted verifies its step.
        """
        if about.verified is False and metrics is None and is_due:
            self.interrupted = about
        if about.averaged or not has_statistics:
            self._averaged = about.step
        elif metrics is not None:  # it was verified after it was saved, and training went on with the average
            self.average_statistics(about.step)

"""What a run is, in three lines at its start; its best result, where things are and the next commands at its end."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plsc.data.records import Records
from plsc.distributed.topology import Topology
from plsc.engine.observers import Observer, Run, Step
from plsc.engine.observers.best import Best, better
from plsc.engine.observers.metrics_file import METRICS_FILE
from plsc.models.base_model import network_name
from plsc.models.complexity import count_parameters
from plsc.utils.hints import flag_of
from plsc.utils.plural import counted

if TYPE_CHECKING:
    import paddle

log = logging.getLogger("plsc")


class Summary(Observer):
    """Logs data, network, batch and steps at the start; the best verification, files and next commands at the end.

    A run with no step left says neither. A run that ends with an error says what its error says.

    Args:
        topology: the ranks.
        backbone: the network.
        records: the training data; None where it is not the library's own.

    Example:
        >>> Trainer(config).train()  # part of every run
    """

    def __init__(self, topology: Topology, backbone: paddle.nn.Layer, records: Records | None = None) -> None:
        self._topology, self._backbone, self._records = topology, backbone, records
        self._best: Best | None = None
        self._saved: Path | None = None

    def on_start(self, run: Run) -> None:
        self._run = run
        if not run.has_steps:
            return
        if self._records is not None:
            log.info("%s", describe_data(self._records))
        log.info(
            "network: %s, %s parameters, embedding size %d",
            network_name(self._backbone).rpartition(":")[2],
            f"{count_parameters(self._backbone):,}",
            run.config.emb_dim,
        )
        log.info(
            "training from step %d to %s: %s steps per epoch, global batch %d (%d on each rank), ranks %d (%s)",
            run.first_step + 1,
            run.total_steps or "an unknown end",
            run.steps_per_epoch or "an unknown number of",
            run.global_batch,
            run.config.train_batch_size,
            self._topology.world_size,
            "GPU" if self._topology.on_gpu else "CPU",
        )

    def on_verify(self, step: Step, results: Mapping[str, float]) -> None:
        self._best = better(self._best, self._run.config.keep_best, results, step=step.number)

    def on_save(self, step: Step, path: Path) -> None:
        self._saved = path

    def on_end(self, results: Mapping[str, float], error: BaseException | None) -> None:
        if error is not None or self._saved is None:
            return
        if self._best is not None:
            since = f" (of those since step {self._run.first_step})" if self._run.first_step else ""
            log.info("%s, after step %d%s", self._best, self._best.step, since)
        folder = Path(self._run.config.model_save_dir)
        log.info("checkpoints: %s, the newest %s; measurements: %s", folder, self._saved.name, folder / METRICS_FILE)
        place = shlex.quote(str(folder))
        export = f"plsc export {flag_of('checkpoint_dir')} {place} {flag_of('to')} model"
        log.info("next: plsc report %s, or %s", place, export)


def describe_data(records: Records) -> str:
    """Images and classes of training data in a line, with images per class where labels are known without reading."""
    text = f"training data: {counted(len(records), 'image')}"
    labels = records.known_labels()
    if labels is None or not len(labels):
        return f"{text} of {counted(records.num_classes, 'class')}" if records.num_classes else text
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    least, most = counts.min(), counts.max()
    spread = f"{least} of each" if least == most else f"{least} to {most} of each, median {np.median(counts):g}"
    return f"{text} of {counted(len(counts), 'class')}, {spread}"

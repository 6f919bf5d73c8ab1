"""Event files for TensorBoard, written by tensorboardX: `tensorboard --logdir output/logs/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plsc.engine.observers.loggers.base import Logger, Opening
from plsc.engine.observers.measures import Histogram


class TensorBoard(Logger):
    """Scalars, histograms and the settings as a text.

    A resumed run adds a file, which tells TensorBoard to leave out what earlier files have of later steps.
    """

    name, package = "tensorboard", "tensorboardX"

    def open(self, opening: Opening) -> None:
        if not opening.is_resumed:
            for old in opening.folder.glob("events.out.tfevents.*"):  # of another run in this folder
                old.rename(old.with_name(f"superseded.{old.name.replace('tfevents', 'events-of-another-run')}"))
        purge = opening.first_step + 1 if opening.is_resumed else None
        # The package names files by the second: without a number a run that resumes at once would replace one.
        number = len(list(opening.folder.glob("events.out.tfevents.*")))
        self._writer: Any = self.module.SummaryWriter(
            str(opening.folder), purge_step=purge, filename_suffix=f".{number}"
        )
        rows = "\n".join(f"| {name} | `{value}` |" for name, value in opening.settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", opening.first_step)

    def write(self, step: int, scalars: Mapping[str, float], histograms: Mapping[str, Histogram]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, histogram in histograms.items():
            count = sum(histogram.counts)
            middles = [(low + high) / 2 for low, high in zip(histogram.edges, histogram.edges[1:])]
            pairs = list(zip(middles, histogram.counts))
            self._writer.add_histogram_raw(
                f"{name}_histogram",
                min=histogram.edges[0],
                max=histogram.edges[-1],
                num=count,
                sum=sum(middle * number for middle, number in pairs),
                sum_squares=sum(middle * middle * number for middle, number in pairs),
                bucket_limits=list(histogram.edges[1:]),
                bucket_counts=list(histogram.counts),
                global_step=step,
            )
        self._writer.flush()

    def close(self, is_complete: bool) -> None:
        self._writer.close()

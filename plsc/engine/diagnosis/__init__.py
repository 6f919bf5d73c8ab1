"""Symptoms of a training that goes wrong: what each looks at, what it usually means and the setting to try.

A symptom is told facts of the run, logged steps and verifications, and says at most once that it is there.
`plsc.engine.observers.training_doctor` tells them, and writes what they say to the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from plsc.config import Config


class Diagnosis(NamedTuple):
    """What a symptom says: sentences without a capital and a full stop.

    Attributes:
        seen: what was found, with its numbers.
        means: what it usually means.
        cure: the setting to try.
    """

    seen: str
    means: str
    cure: str

    def __str__(self) -> str:
        return f"{self.seen}. It usually means: {self.means}. Try: {self.cure}"


class ClassCounts(NamedTuple):
    """What is known of the images of each class.

    Attributes:
        images: of the training data.
        classes: that have an image.
        absent: classes from 0 to the greatest label that have none; None where labels are not known.
        single: classes that have one image; None where labels are not known.
    """

    images: int
    classes: int
    absent: int | None
    single: int | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run as its symptoms know it.

    Attributes:
        config: the settings, with the number of classes.
        global_batch: images per step of all ranks, G.
        steps_per_epoch: None where it is not known.
        counts: images of classes; None where nothing is known of them.
        is_trained: whether the run begins with trained weights.
    """

    config: Config
    global_batch: int
    steps_per_epoch: int | None = None
    counts: ClassCounts | None = None
    is_trained: bool = False

    @property
    def warmup(self) -> int:
        """Steps after which learning rate and margin are full."""
        config = self.config
        steps = config.warmup_steps or config.warmup_epochs * (self.steps_per_epoch or 0)
        return max(steps, config.margin_warmup)


class Point(NamedTuple):
    """A logged step.

    Attributes:
        step: steps done.
        loss: of the step.
        lr: the learning rate.
        measures: other numbers by name, those that are known.
    """

    step: int
    loss: float
    lr: float
    measures: Mapping[str, float] = {}


class Symptom:
    """Base class of symptoms. Every method says None, nothing; a subclass overrides those of interest.

    After a diagnosis a symptom is asked no more.

    Args:
        case: the run.

    Attributes:
        name: of the finding, as in findings.jsonl.
    """

    name = ""

    def __init__(self, case: Case) -> None:
        self.case = case

    def at_start(self) -> Diagnosis | None:
        """Before the first step of a run; not where it resumes."""
        return None

    def at_point(self, point: Point) -> Diagnosis | None:
        """After a logged step."""
        return None

    def at_verification(self, step: int, results: Mapping[str, float]) -> Diagnosis | None:
        """After a verification; `results` are metrics as '<set>/<metric>'."""
        return None


SymptomMaker = Callable[[Case], Symptom]

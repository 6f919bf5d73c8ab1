"""Classification of images of known classes: how many are found, and which classes are confused.

n images, C classes, k predicted classes per image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plsc.utils.plural import counted

Int64 = NDArray[np.int64]
TOP = 5  # classes per image that a report needs


@dataclass(frozen=True)
class ClosedSetReport:
    """What was predicted for the images of a closed set.

    Attributes:
        labels: [n], the class of each image.
        predicted: [n, k], the classes of the highest scores, the highest first; k is 5, or C where that is less.

    Example:
        >>> report = ClosedSetReport(np.array([3, 4]), np.array([[3, 0], [1, 4]]))
        >>> report.metrics()
        {'top1': 0.5, 'top5': 1.0, 'images': 2.0}
    """

    labels: Int64
    predicted: Int64

    @property
    def top1(self) -> float:
        """Share of the images whose class has the highest score, 0 to 1."""
        return float((self.predicted[:, 0] == self.labels).mean())

    @property
    def top5(self) -> float:
        """Share of the images whose class is among the five of the highest scores, 0 to 1."""
        return float((self.predicted[:, :TOP] == self.labels[:, None]).any(axis=1).mean())

    def metrics(self) -> dict[str, float]:
        """All metrics by name."""
        return {"top1": self.top1, "top5": self.top5, "images": float(len(self.labels))}

    def __str__(self) -> str:
        return f"top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %, {counted(len(self.labels), 'image')}"

    def classes(self) -> list[ClassResult]:
        """The result of each class that has an image, by class number."""
        images = np.bincount(self.labels)
        correct = np.bincount(self.labels, weights=self.predicted[:, 0] == self.labels)
        most: dict[int, Confusion] = {}
        for confusion in self.confusions():
            most.setdefault(confusion.label, confusion)
        return [
            ClassResult(label, int(images[label]), int(correct[label]), most.get(label))
            for label in np.unique(self.labels).tolist()
        ]

    def confusions(self) -> list[Confusion]:
        """The pairs of classes that were confused, the most frequent first, equal ones by number."""
        is_wrong = self.predicted[:, 0] != self.labels
        pairs = np.stack([self.labels[is_wrong], self.predicted[is_wrong, 0]], axis=1)
        unique, counts = np.unique(pairs, axis=0, return_counts=True)
        order = np.lexsort((unique[:, 1], unique[:, 0], -counts))
        return [Confusion(int(unique[place, 0]), int(unique[place, 1]), int(counts[place])) for place in order]


class ClassResult(NamedTuple):
    """The result of one class.

    Attributes:
        label: the class.
        images: its images.
        correct: those of them for which it has the highest score.
        confusion: the class that is predicted most often in its place, the lower of two; None where none is.
    """

    label: int
    images: int
    correct: int
    confusion: Confusion | None


class Confusion(NamedTuple):
    """So many images of the class `label` were taken for the class `predicted`."""

    label: int
    predicted: int
    images: int

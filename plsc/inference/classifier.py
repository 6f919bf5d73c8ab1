"""The classifier of an export: class centers and the names of the classes, beside the network. Needs no Paddle.

    classifier.safetensors    centers [C, D] float32, of unit length where the score is a cosine; [C, K, D] of K
                              sub-centers per class, of which the nearest counts
                              bias [C] float32, where the head has one
                              names.text [bytes] uint8, names.ends [n + 1] int64: name i is text[ends[i]:ends[i + 1]]

The file is memory-mapped: processes of a machine share it, and one that classifies nothing takes no memory for it.

n images, D embedding, C classes, B classes of a chunk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.data.class_names import ClassNames
from plsc.data.sources.string_table import StringTable
from plsc.errors import ServingError
from plsc.inference.embedding import Embeddings
from plsc.inference.gallery_index import QuantizedIndex
from plsc.inference.model_card import CLASSIFIER_FILE, ClassifierCard, ModelCard
from plsc.metrics.ranking import TopClasses, slack
from plsc.utils.files import file_digest
from plsc.utils.finite import find_nonfinite
from plsc.utils.hints import either
from plsc.utils.safetensors_file import DTYPES, Place, parse_header, read_header

log = logging.getLogger("plsc")

CENTERS, BIAS, TEXT, ENDS = "centers", "bias", "names.text", "names.ends"
FAISS_FROM = 4_000_000
"""From so many classes on, faiss finds the nearest centers, where it is installed and the score is a cosine.

Its index takes D bytes per class in memory, a quarter of the centers. With fewer classes a product of matrices is as
fast.
"""
NEAREST = 1000
"""So many centers are looked at exactly where faiss finds them."""
_SCORES = 1 << 22  # that are worked on at a time
_LEAST_CHUNK = 1024
_DIGESTED = 1 << 30  # a larger file is not read as a whole when it is opened


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A class that an image may be of.

    Attributes:
        name: of the class; its number where the training data had no names.
        number: of the class in training, 0 to C - 1.
        probability: 0 to 1, by the softmax over s times the cosines, or over the logits of a softmax head.
        score: the cosine of the embedding and the class center, -1 to 1; the logit of a softmax head.
    """

    name: str
    number: int
    probability: float
    score: float

    def as_dict(self) -> dict[str, Any]:
        """The prediction as JSON has it."""
        return dataclasses.asdict(self)


class Classifier:
    """The classifier of an export. Safe to share between threads.

    The classes and scores are exact. The probability is normalized over `normalized_over` classes: all of them, or the
    1000 nearest where faiss finds these. The sum over the others is then left out, which makes it somewhat too large.

    Args:
        folder: of the export.
        card: what its model card says.
        emb_dim: D.
        faiss_from: see `FAISS_FROM`.

    Attributes:
        card: as given.
        names: of the classes.
        normalized_over: C, or 1000.

    Raises:
        ServingError: the file is missing, damaged, or not what the card says.
    """

    def __init__(self, folder: Path, card: ClassifierCard, *, emb_dim: int, faiss_from: int = FAISS_FROM) -> None:
        self.card, path = card, folder / CLASSIFIER_FILE
        try:
            arrays = _open(path, card, emb_dim=emb_dim)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServingError(
                f"{path}: the classifier cannot be read: {getattr(error, 'strerror', None) or error}; export the model "
                f"again"
            ) from None
        self._centers, self._bias = arrays[CENTERS], arrays.get(BIAS)
        self.names = ClassNames(StringTable.from_arrays(arrays[TEXT], arrays[ENDS]) if card.names else None)
        self._index: QuantizedIndex | None = None
        is_plain = card.is_cosine and card.subcenters == 1
        if card.classes >= faiss_from and is_plain and importlib.util.find_spec("faiss") is not None:
            self._index = QuantizedIndex(emb_dim)
            for start in range(0, card.classes, _SCORES // emb_dim):
                self._index.add(np.ascontiguousarray(self._centers[start : start + _SCORES // emb_dim]))
        self.normalized_over = card.classes if self._index is None else min(NEAREST, card.classes)

    def classify(self, features: Embeddings, top: int) -> list[list[Prediction]]:
        """The `top` classes of each feature, the most probable first, equal ones by number; C at most.

        Args:
            features: [n, D]: embeddings of unit length where the score is a cosine, else the network's outputs.
            top: 1 or more.
        """
        best = TopClasses(features, min(top, self.card.classes), is_cosine=self.card.is_cosine)
        sums = self._near(best, features) if self._index is not None else self._all(best, features)
        scores = best.scores
        probabilities = np.minimum(1.0, np.exp(self.card.scale * scores - sums[:, None]))
        return [
            [
                Prediction(name=self._name(number), number=number, probability=float(probability), score=float(score))
                for number, probability, score in zip(*row)
            ]
            for row in zip(best.classes.tolist(), probabilities, scores)
        ]

    def _all(self, best: TopClasses, features: Embeddings) -> NDArray[np.float64]:
        """Offer all classes; returns the logarithm of the sum of the exponentials [n] of all logits."""
        sums = np.full(len(features), -np.inf)
        for start, rows in self._chunks(len(features)):
            scores = features @ rows.reshape(-1, rows.shape[-1]).T
            error = np.full([len(features), 1], slack(rows.shape[-1]), np.float32)
            if self.card.subcenters > 1:
                scores = scores.reshape(len(features), len(rows), -1).max(axis=2)
            own = None if self._bias is None else self._bias[start : start + len(rows)]
            if not self.card.is_cosine:
                error *= np.linalg.norm(features, axis=1, keepdims=True) * np.linalg.norm(rows, axis=-1).max()
            if own is not None:
                scores += own
                error += slack(rows.shape[-1]) * np.abs(own).max()
            # What counts most in the sum is exact.
            samples, places, exact = _offer(best, scores, error, first_class=start, rows=rows, bias=own)
            np.logaddexp.at(sums, samples, self.card.scale * exact)
            scores[samples, places] = -np.inf
            sums = np.logaddexp(sums, _log_sum(self.card.scale * scores))
        return sums

    def _near(self, best: TopClasses, features: Embeddings) -> NDArray[np.float64]:
        """Offer the nearest classes by the index; returns the logarithm of the sum over these."""
        assert self._index is not None
        sums = np.full(len(features), -np.inf)
        for row, found in enumerate(self._index.search(features, self.normalized_over)):
            chosen = np.sort(found[found >= 0])
            rows = np.asarray(self._centers[chosen])
            samples = np.full(len(chosen), row)
            np.logaddexp.at(sums, samples, self.card.scale * best.offer(samples, chosen, rows=rows))
        return sums

    def _chunks(self, images: int) -> Iterator[tuple[int, Embeddings]]:
        size = max(1, max(_LEAST_CHUNK, _SCORES // max(1, images)) // self.card.subcenters)
        return ((start, self._centers[start : start + size]) for start in range(0, self.card.classes, size))

    def _name(self, number: int) -> str:
        # The name of a folder need not be UTF-8; JSON and terminals take nothing else.
        return self.names[number].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def open_classifier(card: ModelCard) -> Classifier:
    """The classifier of an export.

    Raises:
        ServingError: the export has none, or it is damaged.
    """
    if card.classifier is None:
        raise ServingError(
            f"{card.directory}: the export has no classifier; export the checkpoint with "
            f"{either('convert_for_prediction(classifier=True)', 'plsc export --classifier')}"
        )
    return Classifier(card.directory, card.classifier, emb_dim=card.emb_dim)


def names_digest(text: NDArray[np.uint8], ends: NDArray[np.int64]) -> str:
    """SHA-256 of a table of names."""
    digest = hashlib.sha256(np.ascontiguousarray(ends).tobytes())
    digest.update(np.ascontiguousarray(text).data)
    return digest.hexdigest()


def _open(path: Path, card: ClassifierCard, *, emb_dim: int) -> dict[str, NDArray[Any]]:
    """The arrays of the file, memory-mapped.

    Raises:
        OSError, ValueError, TypeError, KeyError: it cannot be read, or is not what the card says.
    """
    with open(path, "rb") as file:
        places = parse_header(read_header(file))
        size = file.seek(0, 2)
        if size != max(place.stop for place in places.values()):
            raise ValueError(f"it has {size} bytes, expected {max(place.stop for place in places.values())}")
        if card.digest and size <= _DIGESTED and (found := file_digest(path)) != card.digest:
            raise ValueError(f"it is damaged: its SHA-256 is {found}, expected {card.digest}")
    group = [card.subcenters] if card.subcenters > 1 else []
    expected = {CENTERS: ("float32", [card.classes, *group, emb_dim])}
    if not card.is_cosine and BIAS in places:
        expected[BIAS] = ("float32", [card.classes])
    arrays = {name: _map(path, places[name], dtype, shape) for name, (dtype, shape) in expected.items()}
    if size <= _DIGESTED and (damage := find_nonfinite(arrays[CENTERS])) is not None:
        raise ValueError(f"the center of class {damage[0][0]} holds {damage[1]:g}")
    if card.names:
        text, ends = places[TEXT], places[ENDS]
        arrays[TEXT] = _map(path, text, "uint8", text.shape)
        arrays[ENDS] = _map(path, ends, "int64", ends.shape)
        if names_digest(arrays[TEXT], arrays[ENDS]) != card.names:
            raise ValueError("the names of the classes are damaged: their digest is another than in the model card")
    return arrays


def _map(path: Path, place: Place, dtype: str, shape: list[int]) -> NDArray[Any]:
    if (place.dtype, place.shape) != (DTYPES[dtype], shape):
        raise ValueError(f"found {place.shape} of {place.dtype}, expected {shape} of {DTYPES[dtype]}")
    if not np.prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset=place.start, shape=tuple(shape)).view(np.ndarray)


def _offer(
    best: TopClasses,
    scores: Embeddings,
    error: Embeddings,
    *,
    first_class: int,
    rows: Embeddings,
    bias: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Offer the classes of a chunk that may be among the highest, by scores [n, B] that are off by `error` [n, 1].

    Returns:
        Of each pair of an image and a class: the image, the place in the chunk, and the exact score; all [P].
    """
    count = best.classes.shape[1]
    bar = best.scores[:, -1:] - error
    if scores.shape[1] >= count:
        bar = np.maximum(bar, np.partition(scores, -count, axis=1)[:, -count : -count + 1 or None] - 2 * error)
    samples, places = np.nonzero(scores >= bar)
    own = None if bias is None else bias[places]
    return samples, places, best.offer(samples, first_class + places, rows=rows[places], bias=own)


def _log_sum(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The logarithm of the sum of the exponentials of each row of [n, B]; -inf where all of them are."""
    highest = np.maximum(logits.max(axis=1, keepdims=True), np.finfo(np.float32).min)
    total = np.exp(logits - highest).sum(axis=1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        found: NDArray[np.float64] = np.log(total) + highest[:, 0]
    return found

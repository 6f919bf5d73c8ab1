"""The model card of an export, `plsc_model.json`: the network's inputs and outputs. It is read without Paddle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plsc.errors import ServingError
from plsc.inference.embedding import EmbeddingPath
from plsc.remote.cache import Cache
from plsc.remote.folder import RemoteFolder
from plsc.utils.artifacts import absence
from plsc.utils.atomic import restore_folder
from plsc.utils.hints import either
from plsc.utils.locations import is_remote, keep_credentials

FORMAT = "plsc-inference-model"
ABOUT_FILE = "plsc_model.json"
MODEL_PREFIX = "model"
CLASSIFIER_FILE = "classifier.safetensors"


@dataclass(frozen=True, kw_only=True)
class ClassifierCard:
    """What a model card says of the classifier, see `plsc.inference.classifier`.

    Attributes:
        classes: C.
        is_cosine: whether the score of a class is a cosine, or <x, w> + b.
        subcenters: K, centers per class, of which the nearest counts.
        scale: s: probabilities are the softmax over s times the score.
        names: SHA-256 of the names of the classes; '' where they have none.
        digest: SHA-256 of the file.
    """

    classes: int
    subcenters: int
    is_cosine: bool
    scale: float
    names: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class ModelCard(EmbeddingPath):
    """The inputs and outputs of an exported network, with the path from an image to its embedding.

    Attributes:
        directory: folder of the export.
        emb_dim: D.
        weights: SHA-256 of the network's weights; equal for all exports of one checkpoint, with any `bake`. Empty
            where the export states none.
        plain_kernels: Paddle's fused kernels compute something else than the network, so that the predictor must do
            without them. Slower.
        classifier: None where the export has none.

    Example:
        >>> card = read_model_card("output/inference_model")
        >>> card.image_shape, card.emb_dim
        ((3, 112, 112), 512)
    """

    directory: Path
    emb_dim: int
    weights: str
    plain_kernels: bool
    classifier: ClassifierCard | None = None

    @property
    def model_file(self) -> Path:
        return self.directory / f"{MODEL_PREFIX}.json"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of every field except `directory`: equal for copies of one export in different folders."""
        return hashlib.sha256(repr(dataclasses.replace(self, directory=Path())).encode()).hexdigest()

    @property
    def input_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.takes_pixels else np.float32)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input; -1 where any size is accepted."""
        return (-1, -1, 3) if self.takes_pixels else self.image_shape


def read_model_card(directory: str | Path) -> ModelCard:
    """Read the model card of an export.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/. May be a URL.

    Raises:
        ServingError: the folder holds no export, or the card is damaged or of another format.
        StorageError: a remote folder cannot be read.
    """
    try:
        location = keep_credentials(str(directory)) if isinstance(directory, (str, Path)) else ""
        directory = _fetch(location) if is_remote(location) else Path(directory)
    except TypeError:
        raise ServingError(
            f"got {type(directory).__name__} {str(directory)[:60]!r}, expected the folder of an exported model"
        ) from None
    for folder in (directory, directory / "inference_model"):
        if not os.path.exists(folder):
            restore_folder(folder)  # the process that was replacing it was killed
    inner = directory / "inference_model"
    if not os.path.isfile(directory / ABOUT_FILE) and os.path.isfile(inner / ABOUT_FILE):
        directory = inner
    about = _read_about(directory)
    try:
        baked: dict[str, Any] = about.get("baked", {})
        return ModelCard(
            directory=directory,
            image_shape=tuple(about["image_shape"]),
            emb_dim=about["emb_dim"],
            flip=about["flip"],
            takes_pixels=baked.get("preprocess", False),
            gives_unit=baked.get("normalise", False),
            bgr=baked.get("channels") == "BGR",
            weights=about.get("weights", ""),
            plain_kernels=about.get("plain_kernels", False),
            pixel_mean=about["pixel_mean"],
            pixel_std=about["pixel_std"],
            classifier=_classifier_card(about),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServingError(f"{directory / ABOUT_FILE}: damaged ({error!r}); export the model again") from None


def _classifier_card(about: dict[str, Any]) -> ClassifierCard | None:
    found = about.get("classifier")
    if found is None:
        return None
    return ClassifierCard(
        classes=int(found["classes"]),
        subcenters=int(found.get("subcenters", 1)),
        is_cosine=found["score"] == "cosine",
        scale=float(found["scale"]),
        names=found["names"] or "",
        digest=about.get("files", {}).get(CLASSIFIER_FILE, ""),
    )


def _fetch(url: str) -> Path:
    """Copy a remote export to the cache."""
    folder = RemoteFolder(url)
    if f"inference_model/{ABOUT_FILE}" in folder.files():
        folder = folder / "inference_model"
    return Cache().fetch(folder)


def _read_about(directory: Path) -> dict[str, Any]:
    path = directory / ABOUT_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if os.path.isfile(path):
            reason = getattr(error, "strerror", None) or error
            raise ServingError(f"{path}: cannot be read: {reason}") from None
        remedy = f"make one with {either('convert_for_prediction()', 'plsc export')}"
        raise ServingError(absence(directory, "exported model", file=ABOUT_FILE, remedy=remedy)) from None
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != 1:
        raise ServingError(f"{path}: found {str(about)[:80]!r}, expected format {FORMAT!r} version 1")
    return about

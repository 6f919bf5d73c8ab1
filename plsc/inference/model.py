"""An exported model in this process: images in, embeddings of unit length out."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plsc.data.damage import DamageLog
from plsc.data.image_input import each_image, name_image, named_error, take_image
from plsc.errors import DataError, ServingError
from plsc.inference.classifier import Classifier, Prediction, open_classifier
from plsc.inference.embedding import Embeddings, Pixels, check_finite
from plsc.inference.model_card import ModelCard, read_model_card
from plsc.inference.predictor import Predictor
from plsc.utils.finite import find_nonfinite
from plsc.utils.numbers import as_array, as_count


def load_inference_model(directory: str | Path, *, device: str | None = None) -> InferenceModel:
    """Load a model that `plsc export` or `Entry.convert_for_prediction` wrote.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.
        device: 'cpu' or 'gpu:<index>'; by default the device that Paddle computes on in this process, see
            `InferenceModel`.

    Raises:
        ServingError: the folder holds no export, Paddle cannot load it, or there is no such device.

    Example:
        >>> model = plsc.load_inference_model("output")
        >>> embeddings = model.embed(["ann.jpg", "bob.jpg"])
        >>> cosine = embeddings[0] @ embeddings[1]
    """
    return InferenceModel(directory, device=device)


class InferenceModel:
    """An exported network with its pre-processing. It needs nothing of training.

    Safe to share between threads: images are decoded side by side, and one forward pass runs at a time. More models
    would not be faster, since Paddle holds Python's interpreter lock while it computes. A copy is the model itself. A
    pickled model loads the export anew where it is unpickled. A forked process may use the model if only the thread
    that forks has used models, and not on a GPU; else they raise an error there.

    Args:
        directory: the exported folder, or the `model_save_dir` that holds it as inference_model/.
        threads: CPU threads of a forward pass, 1 or more; by default Paddle's own choice, which is 1.
        device: 'cpu' or 'gpu:<index>'; by default the device that Paddle computes on in this process: that of
            `paddle.set_device`, in a rank its own, else the first GPU, else the CPU. A pickle keeps what is given.

    Attributes:
        card: the model's inputs and outputs.
        image_shape: (3, H, W) that images are resized to.
        emb_dim: D.

    Raises:
        ServingError: the folder holds no export, Paddle cannot load it, `threads` is no number of 1 or more, or the
            device is not there.

    Example:
        >>> model = InferenceModel("output/inference_model", threads=4)
        >>> model.embed(["ann.jpg", open("bob.jpg", "rb").read()]).shape
        (2, 512)
    """

    def __init__(self, directory: str | Path, threads: int | None = None, *, device: str | None = None) -> None:
        self.card: ModelCard = read_model_card(directory)
        self.image_shape, self.emb_dim = self.card.image_shape, self.card.emb_dim
        self._predictor = Predictor(self.card.model_file, threads, plain=self.card.plain_kernels, device=device)
        self._classifier: Classifier | None = None
        self._opening = threading.Lock()
        # Where to load from in another process, whose current folder may be another.
        self._source = (os.path.abspath(self.card.directory), threads, device, self.card.fingerprint)

    def embed(self, images: Any | Iterable[Any], batch_size: int = 32) -> Embeddings:
        """Embed images: [n, D] float32 of unit length, in the order of the images.

        There is a warning of an image that is damaged but can be decoded in part.

        Args:
            images: one image or several, also by a generator, of which one batch is in memory at a time. An image is a
                path, encoded bytes, an open file, an image of Pillow, or pixels [H, W, 3] uint8 RGB as an array or a
                tensor; see `plsc.data.image_input.take_image`. A normalized image [3, H, W] float32 is taken too,
                unless the network normalizes by itself.
            batch_size: images per forward pass, 1 or more.

        Raises:
            DataError: an image cannot be read, is of another kind, or holds NaN, or its embedding does; the message has
                its path, or its place in the sequence.
            ServingError: the batch size is below 1.
        """
        return self._embed_all(images, batch_size, of="embed")

    def classify(self, images: Any | Iterable[Any], top: int = 5, *, batch_size: int = 32) -> list[list[Prediction]]:
        """Classify images: the most probable classes of each, the most probable first, equal ones by number.

        For an export with a classifier (`plsc export --classifier`). The classes are those of training. An image of no
        class gets the nearest ones too: its highest cosine is low, and its probability may still be high.

        Args:
            images: as for `embed`.
            top: classes per image, 1 or more; C at most are returned.
            batch_size: images per forward pass, 1 or more.

        Raises:
            DataError: as for `embed`.
            ServingError: the export has no classifier, the classifier is damaged, or a number is below 1.
        """
        count, classifier = as_count(top), self.classifier
        if count is None:
            raise ServingError(f"classify: got top {top!r}, expected 1 or more, as a whole number")
        return classifier.classify(
            self._embed_all(images, batch_size, of="classify", unit=classifier.card.is_cosine), count
        )

    @property
    def classifier(self) -> Classifier:
        """The classifier of the export, opened at its first use.

        Raises:
            ServingError: the export has none, or it is damaged.
        """
        with self._opening:
            if self._classifier is None:
                self._classifier = open_classifier(self.card)
        return self._classifier

    def _embed_all(self, images: Any | Iterable[Any], batch_size: int, *, of: str, unit: bool = True) -> Embeddings:
        """[n, D], of unit length or as `EmbeddingPath.to_features` makes them; `of` names the caller in messages."""
        count = as_count(batch_size)
        if count is None:
            raise ServingError(f"{of}: got batch_size {batch_size!r}, expected 1 or more, as a whole number")
        numbered, damaged = enumerate(each_image(images)), DamageLog()
        embeddings: list[Embeddings] = []
        done = 0
        while batch := [self._prepare(*one, damaged) for one in itertools.islice(numbered, count)]:
            if any(image.dtype != np.uint8 for image in batch):
                # One by one, so that pixels and normalized images fit into one batch.
                batch = [self.card.normalize(image) for image in batch]
            embeddings.append(self._embed(np.stack(batch), unit=unit))
            check_finite(embeddings[-1], first=done)
            done += len(batch)
        return np.concatenate(embeddings) if embeddings else self._no_rows()

    def embed_pixels(self, pixels: Pixels) -> Embeddings:
        """Embed pixels [N, 3, H, W] uint8 RGB of the model's size: [N, D] float32 of unit length.

        Raises:
            DataError: another type or shape.
        """
        pixels = as_array(pixels)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != tuple(self.image_shape):
            raise DataError(
                f"embed_pixels: got {list(pixels.shape)} of {pixels.dtype}, expected {_axes(self.image_shape)} of "
                f"uint8; embed() takes images of any size"
            )
        return self._embed(pixels)

    def features_of_pixels(self, pixels: Pixels) -> Embeddings:
        """The network's outputs [N, D], not of unit length, for pixels as `embed_pixels` takes them: the mean over
        mirror images where these are summed for embeddings. What `classify` needs of a softmax head."""
        return self._embed(as_array(pixels), unit=False)

    def run(self, batch: NDArray[Any]) -> Embeddings:
        """Run the network alone: normalized images [N, 3, H, W] float32 to outputs [N, D], not of unit length.

        What was baked in at export changes both. `card.takes_pixels` says that it takes pixels [N, H', W', 3] uint8,
        `card.gives_unit` that the outputs have unit length.

        Raises:
            DataError: another type or shape, or NaN or infinity in it. Floats of any precision are taken where float32
                is expected.
        """
        batch, expected, shape = as_array(batch), self.card.input_dtype, self.card.input_shape
        fits = batch.dtype == expected or batch.dtype.kind == expected.kind == "f"
        fits = fits and batch.ndim == 1 + len(shape)
        if not (fits and all(size == want or (want == -1 and size > 0) for size, want in zip(batch.shape[1:], shape))):
            raise DataError(
                f"run: got {list(batch.shape)} of {batch.dtype}, expected {_axes(shape)} of {expected}: the network's "
                f"own input, which card.to_input() makes of pixels"
            )
        with np.errstate(over="ignore"):
            batch = batch.astype(expected, copy=False)
        found = find_nonfinite(batch)  # the network may make finite numbers of it: ReLU turns NaN into 0
        if found is not None:
            (index, *_), value = found
            raise DataError(f"run: image {index} holds {value:g}, expected finite numbers within float32")
        return self._predictor.run(batch) if len(batch) else self._no_rows()

    def warm_up(self) -> tuple[str, str]:
        """Run once on a black image, since the first pass is slow; returns the names of input and output."""
        self.embed_pixels(np.zeros([1, *self.image_shape], np.uint8))
        return self._predictor.input_name, self._predictor.output_name

    def __repr__(self) -> str:
        return f"InferenceModel({str(self.card.directory)!r}): images {list(self.image_shape)} to [{self.emb_dim}]"

    def __copy__(self) -> InferenceModel:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> InferenceModel:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, self._source

    def _embed(self, images: NDArray[Any], *, unit: bool = True) -> Embeddings:
        if not len(images):
            return self._no_rows()
        outputs, count = self._predictor.run(self.card.to_input(images)), len(images)
        return self.card.to_embeddings(outputs, count) if unit else self.card.to_features(outputs, count)

    def _no_rows(self) -> Embeddings:
        return np.zeros([0, self.emb_dim], np.float32)

    def _prepare(self, index: int, image: Any, damaged: DamageLog) -> NDArray[Any]:
        on_damage = functools.partial(damaged.warn, name_image(image, index))
        try:
            return self.card.prepare(take_image(image), on_damage=on_damage)
        except DataError as error:
            raise named_error(error, image, index=index) from None


def _axes(shape: tuple[int, ...]) -> str:
    """The shape of several inputs of a shape, for messages."""
    return f"[N, {', '.join('any' if size == -1 else str(size) for size in shape)}]"


def _load_again(directory: str, threads: int | None, device: str | None, fingerprint: str) -> InferenceModel:
    """The model of a pickle."""
    model = InferenceModel(directory, threads, device=device)
    if model.card.fingerprint != fingerprint:
        raise ServingError(f"{directory}: another model has been exported there since the pickle was made; load it")
    return model

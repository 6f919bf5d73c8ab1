"""The embeddings of a gallery in a faiss index, by position: exact, quantized, or as a graph.

Every kind finds positions by inner product. n positions, D embedding size.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from plsc.errors import ConfigError
from plsc.inference.embedding import Embeddings
from plsc.utils.lazy import require
from plsc.utils.names import one_of

Positions = NDArray[np.int64]

# Rows that are decoded at a time.
_BLOCK = 1 << 14
# HNSW: links per node, and nodes that are looked at while a node is added and while a probe is searched.
_LINKS, _EF_ADD, _EF_SEARCH = 32, 100, 1024
# Share of removed rows from which the graph is made again.
_MOST_REMOVED = 0.2


class GalleryIndex:
    """Rows [n, D] of unit length by position 0 ... n - 1, every one exact. This is the kind 'flat', 4 D bytes per row.

    Threads may read one index at once. Nothing else may happen while a thread adds or removes rows.

    Args:
        dimension: D.
        made: the faiss index, if it exists already.

    Attributes:
        numbers: the number of each row, where the index was read from a gallery of version 1. Its rows are in the order
            of their numbers.
        closes_gaps: whether `remove` moves the rows behind the removed ones to lower positions.
    """

    kind = "flat"
    closes_gaps = True
    numbers: list[int] | None = None

    def __init__(self, dimension: int, made: Any = None) -> None:
        self.index = self._make(dimension) if made is None else made

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.index.d)

    def add(self, rows: Embeddings) -> None:
        """Append rows [m, D] of unit length."""
        self.index.add(rows)

    def remove(self, positions: Positions) -> None:
        """Remove rows; see `closes_gaps`."""
        self.index.remove_ids(positions)

    def search(self, probes: Embeddings, count: int) -> Positions:
        """[Q, D] -> the positions [Q, count] of the most similar rows, in order; -1 where there are fewer."""
        positions: Positions = self.index.search(probes, count)[1]
        return positions

    def rows(self, positions: Positions) -> Embeddings:
        """The rows [m, D] at positions [m], as precisely as the index holds them."""
        rows: Embeddings = self.index.reconstruct_batch(positions)
        return rows

    def write(self, file: IO[bytes]) -> None:
        """Write the index to an open file."""
        faiss = import_faiss()
        faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write))

    def _make(self, dimension: int) -> Any:
        return import_faiss().IndexFlatIP(dimension)

    @property
    def removed_count(self) -> int:
        """Rows that are removed and still have a position."""
        return 0

    @property
    def is_worn(self) -> bool:
        """Whether so many rows are removed that the index should be made again."""
        return self.removed_count > _MOST_REMOVED * len(self)

    @staticmethod
    def fits(index: Any) -> bool:
        """Whether a faiss index is of this kind; its metric is checked elsewhere."""
        return isinstance(index, import_faiss().IndexFlat)


class QuantizedIndex(GalleryIndex):
    """The kind 'sq8': each number of a row is one byte. D bytes per row.

    All numbers lie in the range from -r to r, divided into 255 equal steps. r begins at 6 / sqrt(D), six times the root
    mean square of the numbers of a unit vector. A row with a larger number widens the range; the rows are then
    quantized again.
    """

    kind = "sq8"

    def add(self, rows: Embeddings) -> None:
        largest = float(np.abs(rows).max(initial=0))
        if largest > self._range:
            widened = self._make(self.dimension, 1.25 * largest)
            for start in range(0, len(self), _BLOCK):
                widened.add(self.index.reconstruct_n(start, min(_BLOCK, len(self) - start)))
            self.index = widened
        self.index.add(rows)

    @property
    def _range(self) -> float:
        return -float(import_faiss().vector_to_array(self.index.sq.trained)[0])

    def _make(self, dimension: int, largest: float = 0.0) -> Any:
        faiss = import_faiss()
        made = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT)
        reach = largest or min(1.0, 6 / np.sqrt(dimension))
        faiss.copy_array_to_vector(np.array([-reach, 2 * reach], np.float32), made.sq.trained)
        made.is_trained = True
        return made

    @staticmethod
    def fits(index: Any) -> bool:
        faiss = import_faiss()
        return isinstance(index, faiss.IndexScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_8bit_uniform


class GraphIndex(GalleryIndex):
    """The kind 'hnsw': a graph of near neighbors (Malkov and Yashunin, 2018). 4 D + 270 bytes per row.

    A search looks at a part of the rows and may miss a near one. The graph has no removal: the row of a
    removed position is set to zero and left out of results until the index is made again.

    Attributes:
        removed: the positions that are removed.
    """

    kind = "hnsw"
    closes_gaps = False

    def __init__(self, dimension: int, made: Any = None) -> None:
        super().__init__(dimension, made)
        self.removed: Positions = np.empty(0, np.int64)

    def remove(self, positions: Positions) -> None:
        faiss = import_faiss()
        storage = faiss.downcast_index(self.index.storage)
        held = faiss.rev_swig_ptr(storage.get_xb(), len(self) * self.dimension).reshape(len(self), self.dimension)
        held[positions] = 0
        self.removed = np.union1d(self.removed, positions)

    def search(self, probes: Embeddings, count: int) -> Positions:
        faiss = import_faiss()
        left_out: dict[str, Any] = {}
        if len(self.removed):
            left_out = {"sel": faiss.IDSelectorNot(faiss.IDSelectorBatch(self.removed))}
        options = faiss.SearchParametersHNSW(efSearch=max(_EF_SEARCH, 2 * count), **left_out)
        positions: Positions = self.index.search(probes, count, params=options)[1]
        return positions

    @property
    def removed_count(self) -> int:
        return len(self.removed)

    def _make(self, dimension: int) -> Any:
        faiss = import_faiss()
        made = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction = _EF_ADD
        return made

    @staticmethod
    def fits(index: Any) -> bool:
        return isinstance(index, import_faiss().IndexHNSWFlat)


KINDS: dict[str, type[GalleryIndex]] = {kind.kind: kind for kind in (GalleryIndex, QuantizedIndex, GraphIndex)}


def index_class(kind: str) -> type[GalleryIndex]:
    """The class of a kind: 'flat', 'sq8' or 'hnsw'.

    Raises:
        ConfigError: there is no such kind.
    """
    try:
        return KINDS[one_of(kind, KINDS)]
    except ValueError as error:
        raise ConfigError(f"gallery: got the index {kind!r}; {error}") from None


def read_index(file: IO[bytes], kind: str) -> GalleryIndex:
    """Read an index of embeddings that `GalleryIndex.write`, or a gallery of version 1, wrote.

    Raises:
        ValueError: the file holds no index, or one of another kind or metric; says what was found.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except (RuntimeError, MemoryError) as error:  # faiss reserves memory for whatever size a damaged file states
        raise ValueError(f"no faiss index can be read from it: {str(error)[-200:]}") from None
    expected, found, numbers = index_class(kind), _describe(index), None
    if isinstance(index, faiss.IndexIDMap):
        numbers = faiss.vector_to_array(index.id_map).tolist()
        # A copy, because the index inside is deleted with the outer one. Taking it over by own(True) unloads faiss's
        # classes after some calls.
        index = faiss.clone_index(index.index)
    if not expected.fits(index) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"found {found}, expected the kind {kind!r} with inner products")
    made = expected(index.d, index)
    made.numbers = numbers
    return made


def _describe(index: Any) -> str:
    """The class and the metric of a faiss index."""
    faiss = import_faiss()
    metrics = {faiss.METRIC_INNER_PRODUCT: "inner products", faiss.METRIC_L2: "L2 distances"}
    return f"{type(index).__name__} with {metrics.get(index.metric_type, f'metric {index.metric_type}')}"


@functools.cache
def import_faiss() -> Any:
    """The module.

    Raises:
        MissingDependencyError: faiss is not installed.
    """
    # faiss logs each library that it tries to load, and Paddle sets the root logger to show such messages.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    faiss = require("faiss", "faiss-cpu", purpose="a gallery")
    # A forked process has none of the threads that OpenMP believes it has, and would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: faiss.omp_set_num_threads(1))
    return faiss

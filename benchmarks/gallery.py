"""Measure the kinds of index of a gallery: time, size, recall.

    python benchmarks/gallery.py                        # 100,000 entries of 512 numbers, about five minutes
    python benchmarks/gallery.py --entries 20000 --kinds flat sq8

Each entry is a random unit vector, the embedding of one person. Each probe is another embedding of one of the entries,
with a cosine of about 0.5 between the two, as between two photographs of a person. One line of JSON per kind:

    build_s         seconds to enroll all entries
    save_s, open_s  seconds to save and to open the gallery
    mb              megabytes on the disk
    ms              milliseconds per search of one probe; p50
    batch_ms        milliseconds per probe in searches of 100 probes
    person          share of probes whose most similar entry is their own
    recall_1        share of probes for which the most similar entry is that of the exact search
    recall_10       share of the exact search's ten most similar entries that are among the ten found
    error           largest difference of a cosine from that of the exact search
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from plsc.inference.embedding import to_unit_length
from plsc.inference.gallery import Gallery, Match

PROBES, COSINE = 500, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--kinds", nargs="+", default=["flat", "sq8", "hnsw"])
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    entries = to_unit_length(draw.standard_normal((options.entries, options.dimension), np.float32))
    persons = draw.choice(options.entries, PROBES, replace=False)
    noise = to_unit_length(draw.standard_normal((PROBES, options.dimension), np.float32))
    probes = COSINE * entries[persons] + np.sqrt(1 - COSINE**2) * noise
    exact: list[list[Match]] = []
    for kind in options.kinds:
        gallery, figures = Gallery(options.dimension, index=kind), {}
        names = [f"person {number}" for number in range(options.entries)]
        figures["build_s"] = measure(gallery.add, names, entries)
        with tempfile.TemporaryDirectory() as folder:
            figures["save_s"] = measure(gallery.save, Path(folder, "g"))
            figures["open_s"] = measure(Gallery.open, Path(folder, "g"))
            figures["mb"] = sum(path.stat().st_size for path in Path(folder, "g").iterdir()) / 1e6
        times = [1000 * measure(gallery.search, probe, 10) for probe in probes[:100]]
        figures["ms"] = float(np.median(times))
        start, found = time.perf_counter(), []
        for first in range(0, PROBES, 100):
            found += gallery.search(probes[first : first + 100], 10)
        figures["batch_ms"] = 1000 * (time.perf_counter() - start) / PROBES
        exact = exact or found  # the first kind should be flat
        figures["person"] = np.mean([row[0].name == names[person] for row, person in zip(found, persons)])
        figures["recall_1"] = np.mean([row[0].name == other[0].name for row, other in zip(found, exact)])
        figures["recall_10"] = np.mean([len(names_of(row) & names_of(other)) / 10 for row, other in zip(found, exact)])
        figures["error"] = max(abs(row[0].cosine - other[0].cosine) for row, other in zip(found, exact))
        print(
            json.dumps({"kind": kind, **{name: round(float(value), 4) for name, value in figures.items()}}), flush=True
        )


def measure(function, *arguments) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def names_of(matches: list[Match]) -> set[str]:
    return {match.name for match in matches}


if __name__ == "__main__":
    main()

"""`plsc demo`: the whole way on the data the package brings, by the same calls that users make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2

from plsc.errors import ConfigError, TrainingError

SCRIPT = Path(__file__).with_name("train.py")


@dataclass(frozen=True)
class Size:
    """How much the demo trains."""

    identities: int
    images_per_identity: int
    pairs: int
    epochs: int
    decay_epochs: tuple[int, ...]


SIZES = {"full": Size(1000, 20, 2000, 3, (2,)), "small": Size(100, 10, 200, 2, (1,))}


def run_demo(output: Path, size: str, ranks: int) -> None:
    """Train on glyphs, verify on unseen ones, resume once, export, embed three images, and print a table.

    Args:
        output: a new folder.
        size: a key of `SIZES`.
        ranks: CPU ranks to train on.

    Raises:
        ConfigError: `output` exists.
        TrainingError: a training process failed.
    """
    if output.exists():
        raise ConfigError(f"{output} exists and is not overwritten; choose another with --output, or remove it")
    output.mkdir(parents=True)
    begin = time.perf_counter()
    chosen = SIZES[size]
    print(f"Training {chosen.identities} glyph identities on {ranks} CPU ranks; log in {output / 'log'}", flush=True)
    _train(output, chosen, ranks, epochs=chosen.epochs - 1)
    print("Resuming from the last checkpoint for the last epoch", flush=True)
    _train(output, chosen, ranks, epochs=chosen.epochs, resume=True)
    results = json.loads((output / "results.json").read_text())
    rows = [("pair accuracy on unseen identities", f"{results['glyphs/accuracy']:.2%}")]
    rows += [
        (f"TAR at FAR {name.rpartition('_')[2]}", f"{value:.2%}")
        for name, value in results.items()
        if "tar_at_far" in name
    ]
    rows += [("training images/s", f"{results['images/s']:.0f}"), *_use(output, chosen)]
    rows += [
        ("seconds", f"{time.perf_counter() - begin:.0f}"),
        ("checkpoints", str(output / "checkpoints")),
        ("exported model", str(output / "model")),
        ("embeddings", str(output / "embeddings.npy")),
    ]
    _print_table(rows)


def _train(output: Path, size: Size, ranks: int, epochs: int, resume: bool = False) -> None:
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        str(ranks),
        "--log_dir",
        str(output / "log"),
        str(SCRIPT),
        "--output",
        str(output),
        "--ranks",
        str(ranks),
        "--identities",
        str(size.identities),
        "--images-per-identity",
        str(size.images_per_identity),
        "--pairs",
        str(size.pairs),
        "--epochs",
        str(epochs),
        "--decay-epochs",
        *map(str, size.decay_epochs),
        *(["--resume"] if resume else []),
    ]
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    done = subprocess.Popen(
        command,
        env={"OMP_NUM_THREADS": threads, **os.environ},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    for line in done.stdout:
        if ": " in line and line[:2].isdigit() and line[2:3] == ":":  # the library's own lines
            print("  " + line, end="", flush=True)
    if done.wait():
        raise TrainingError(f"the demo's training ended with status {done.returncode}; see {output / 'log'}")


def _use(output: Path, size: Size) -> list[tuple[str, str]]:
    """Export, embed two images of one unseen identity and one of another, and compare them."""
    import numpy as np

    from plsc import Entry, load_inference_model
    from plsc.data.sources.glyphs import GlyphRecords

    entry = Entry()
    entry.set_checkpoint_dir(output / "checkpoints")
    entry.convert_for_prediction(output / "model")
    unseen = GlyphRecords(2, 2, image_size=32, seed=1, first_identity=size.identities)
    files = []
    for name, index in (("one.png", 0), ("one_again.png", 1), ("another.png", 2)):
        cv2.imwrite(str(output / name), unseen[index].image[..., ::-1])
        files.append(output / name)
    embeddings = load_inference_model(output / "model").embed(files)
    np.save(output / "embeddings.npy", embeddings)
    one, again, other = embeddings
    return [
        ("cosine of one.png and one_again.png", f"{one @ again:.3f}"),
        ("cosine of one.png and another.png", f"{one @ other:.3f}"),
    ]


def _print_table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    print("\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows))

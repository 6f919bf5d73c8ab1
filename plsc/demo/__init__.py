"""`plsc demo`: train, verify, resume, export and embed, on images that the package draws from fonts."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from plsc.data.sources.glyphs import GlyphRecords
from plsc.distributed.launching.launcher import PADDLE_LAUNCHER
from plsc.entry import Entry
from plsc.errors import ConfigError, TrainingError
from plsc.inference.model import load_inference_model

SCRIPT = Path(__file__).with_name("train.py")


@dataclass(frozen=True)
class Size:
    """How much the demo trains.

    Attributes:
        identities: classes; a class is a character of a font.
        images_per_identity: training images of each class.
        pairs: verification pairs of other classes.
        epochs: all, of which the last is trained in a resumed run.
        decay_epochs: epochs after which the learning rate decays.
    """

    identities: int
    images_per_identity: int
    pairs: int
    epochs: int
    decay_epochs: tuple[int, ...]


SIZES = {"full": Size(1000, 20, 2000, 3, (2,)), "small": Size(100, 10, 200, 2, (1,))}


def run_demo(output: Path, size: str, *, ranks: int) -> None:
    """Train on images of glyphs, verify on other glyphs, resume once, export, embed three images, print a table.

    Args:
        output: a new folder.
        size: a key of `SIZES`.
        ranks: CPU ranks to train on.

    Raises:
        ConfigError: `output` exists.
        MissingDependencyError: the packages that draw glyphs are not installed.
        TrainingError: a training process failed.
    """
    if output.exists():
        raise ConfigError(f"{output} exists and is not overwritten; choose another with --output, or remove it")
    GlyphRecords(1, 1, image_size=32)  # before a folder is made: it needs packages that an extra installs
    output.mkdir(parents=True)
    start = time.perf_counter()
    chosen = SIZES[size]
    print(f"Training {chosen.identities} glyph identities on {ranks} CPU ranks; log in {output / 'log'}", flush=True)
    _train(output, chosen, ranks=ranks, epochs=chosen.epochs - 1)
    print("Resuming from the last checkpoint for the last epoch", flush=True)
    _train(output, chosen, ranks=ranks, epochs=chosen.epochs, resume=True)
    results = json.loads((output / "results.json").read_text())
    rows = [("pair accuracy on unseen identities", f"{results['glyphs/accuracy']:.2%}")]
    rows += [
        (f"TAR at FAR {name.rpartition('_')[2]}", f"{value:.2%}")
        for name, value in results.items()
        if "tar_at_far" in name
    ]
    rows += [("training images/s", f"{results['images/s']:.0f}"), *_export_and_embed(output, chosen)]
    rows += [
        ("seconds", f"{time.perf_counter() - start:.0f}"),
        ("checkpoints", str(output / "checkpoints")),
        ("exported model", str(output / "model")),
        ("embeddings", str(output / "embeddings.npy")),
    ]
    _print_table(rows)


def _train(output: Path, size: Size, *, ranks: int, epochs: int, resume: bool = False) -> None:
    # On CPUs also where there are GPUs, of which there may be fewer than ranks.
    launcher = [PADDLE_LAUNCHER, "--devices", "cpu", "--nproc_per_node", ranks, "--log_dir", output / "log"]
    options = {
        "--output": output,
        "--ranks": ranks,
        "--identities": size.identities,
        "--images-per-identity": size.images_per_identity,
        "--pairs": size.pairs,
        "--epochs": epochs,
    }
    arguments = [SCRIPT, *itertools.chain(*options.items()), "--decay-epochs", *size.decay_epochs]
    command = [sys.executable, "-m", *map(str, [*launcher, *arguments])] + (["--resume"] if resume else [])
    threads = str(max(1, (os.cpu_count() or 1) // ranks))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for line in process.stdout or ():
        if ": " in line and line[:2].isdigit() and line[2:3] == ":":  # lines of the library begin with the time
            print("  " + line, end="", flush=True)
    if process.wait():
        raise TrainingError(f"the demo's training ended with status {process.returncode}; see {output / 'log'}")


def _export_and_embed(output: Path, size: Size) -> list[tuple[str, str]]:
    """Export; embed two images of one identity that was not trained on, and one of another; compare them."""
    entry = Entry()
    entry.set_checkpoint_dir(output / "checkpoints")
    glyphs = GlyphRecords(2, 2, image_size=32, seed=1, first_identity=size.identities)
    entry.train_dataset = glyphs  # the export is compared with the network on them
    entry.convert_for_prediction(output / "model")
    files = []
    for name, index in (("one.png", 0), ("one_again.png", 1), ("another.png", 2)):
        cv2.imwrite(str(output / name), np.asarray(glyphs[index].image)[..., ::-1])
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

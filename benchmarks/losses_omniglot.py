"""What each loss reaches on characters that training has not seen: pair accuracy and 20-way one-shot error. CPU.

    python benchmarks/losses_omniglot.py OMNIGLOT --out omniglot-losses.json
    python benchmarks/losses_omniglot.py OMNIGLOT --losses arcface,adaface --epochs 10

OMNIGLOT is a folder with images_background_small1.zip and images_background_small2.zip of
https://github.com/brendenlake/omniglot. ResNetTiny is trained on all images of the first, with one recipe for all
losses; it is tuned for none of them. The table says whether a loss works, and not which one is best.

    pairs       6,000 pairs of images of the second, half of them of one character, judged by the protocol of LFW
    one-shot    400 trials after Lake et al. (Science, 2015): 20 characters of one alphabet, one image of each by one
                drawer as the gallery and one by another drawer as the probe; the part of the probes that are missed

Characters of the second that are in the first, too, are left out. What was measured before is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from finetuning import SIDE, Characters, read

from plsc import Config
from plsc.engine.evaluator import Embedder
from plsc.engine.trainer import Trainer
from plsc.inference.embedding import EmbeddingPath
from plsc.loss_types import LOSSES
from plsc.metrics.identification import identification
from plsc.metrics.verification import verification_report

PAIRS, TRIALS, WAYS, DRAWERS = 6000, 400, 20, 20
# For the scale of a small set. A loss without an entry has its own.
SCALE = 32.0
SETTINGS: dict[str, dict[str, Any]] = {
    "combined": {"margin1": 0.9, "margin2": 0.4, "margin3": 0.15},
    "softmax": {},
    "sphereface2": {},
    "uniface": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("omniglot", type=Path)
    parser.add_argument("--losses", help=f"some of {','.join(variants())}; by default all")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, help="JSON file of the figures, which grows with each loss")
    options = parser.parse_args()
    first, second = (read(options.omniglot / f"images_background_small{number}.zip") for number in (1, 2))
    unseen = {name: second[name] for name in sorted(second.keys() - first.keys())}
    found = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    for name in options.losses.split(",") if options.losses else variants():
        if name not in found:
            found[name] = measure(
                variants()[name], Characters(first, sorted(first), slice(None)), unseen, options.epochs
            )
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found[name], flush=True)


def variants() -> dict[str, dict[str, Any]]:
    """Settings by the name of what is measured."""
    found = {kind: {"loss_type": f"dist_{kind}", **SETTINGS.get(kind, {"scale": SCALE})} for kind in LOSSES}
    arcface = found["arcface"]
    found["arcface with filter 0.4"] = {**arcface, "interclass_filter": 0.4}
    found["arcface with 3 sub-centers"] = {**arcface, "subcenters": 3}
    found["arcface with smoothing 0.1"] = {**arcface, "label_smoothing": 0.1}
    found["arcface with margin warm-up"] = {**arcface, "margin_warmup": 500}
    return found


def measure(
    settings: dict[str, Any], data: Characters, unseen: dict[str, list[np.ndarray]], epochs: int
) -> dict[str, float]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            train_dataset=data,
            num_classes=data.num_classes,
            model_name="ResNetTiny",
            image_shape=(3, SIDE, SIDE),
            emb_dim=64,
            flip=False,
            augment_rotate=10.0,
            augment_crop=0.1,
            train_batch_size=64,
            num_workers=0,
            lr=1.6,
            lr_schedule="cosine",
            warmup_steps=100,
            train_epochs=epochs,
            model_save_dir=folder,
            max_last_checkpoint_num=1,
            with_test=False,
            **settings,
        )
        trainer = Trainer(config)
        loss = trainer.train()["loss"]
    path = EmbeddingPath(
        image_shape=config.image_shape, flip=False, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
    )
    embedder = Embedder(trainer.backbone, path, emb_dim=config.emb_dim, batch_size=128)
    images = [image for name in unseen for image in unseen[name]]
    embeddings = embedder(images).reshape(len(unseen), DRAWERS, -1)
    return {
        "pair accuracy": pair_accuracy(embeddings),
        "one-shot error": one_shot_error(embeddings, [name.split("/")[0] for name in unseen]),
        "last loss": loss,
        "seconds": round(time.monotonic() - began),
    }


def pair_accuracy(embeddings: np.ndarray) -> float:
    """Of random pairs of [characters, drawers, D], half of them of one character."""
    rng, count = np.random.default_rng(0), len(embeddings)
    is_same = np.arange(PAIRS) % 2 == 0
    one = rng.integers(count, size=PAIRS)
    other = np.where(is_same, one, (one + rng.integers(1, count, PAIRS)) % count)
    drawers = np.argsort(rng.random((PAIRS, DRAWERS)), axis=1)[:, :2]
    pairs = np.stack([embeddings[one, drawers[:, 0]], embeddings[other, drawers[:, 1]]], axis=1)
    return float(verification_report(pairs.reshape(2 * PAIRS, -1), is_same).accuracy)


def one_shot_error(embeddings: np.ndarray, alphabets: list[str]) -> float:
    rng, members = np.random.default_rng(1), {}
    for number, alphabet in enumerate(alphabets):
        members.setdefault(alphabet, []).append(number)
    large = [numbers for numbers in members.values() if len(numbers) >= WAYS]
    hits = []
    for _ in range(TRIALS):
        chosen = rng.choice(large[rng.integers(len(large))], WAYS, replace=False)
        support, probe = rng.choice(DRAWERS, 2, replace=False)
        labels = np.arange(WAYS)
        found = identification(
            embeddings[chosen, support], labels, probes=embeddings[chosen, probe], probe_labels=labels, ranks=[1]
        )
        hits.append(found[1])
    return 1.0 - float(np.mean(hits))


if __name__ == "__main__":
    main()

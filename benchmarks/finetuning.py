"""How many steps a run on other classes needs that starts from a checkpoint, beside one from scratch. CPU.

    python benchmarks/finetuning.py OMNIGLOT --work /disk/scratch
    plsc launch --nproc_per_node 2 benchmarks/finetuning.py OMNIGLOT --work /disk/scratch --only finetune

OMNIGLOT is a folder with images_background_small1.zip and images_background_small2.zip of
https://github.com/brendenlake/omniglot. A network is trained on all characters of the first. Then half of these
characters and as many of the second are a data set of half kept and half new classes, which is followed by name; with
--kept none it is as many of the second alone, with a new head. A run from scratch has all steps, one from the
checkpoint has a quarter of them. "top-1" is the part of five images of each character by other drawers, which no run
has seen, whose nearest class center is theirs. The second command does the fine-tuning once more, on two ranks.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from plsc import Config
from plsc.distributed.topology import init_topology
from plsc.engine.evaluator import Embedder
from plsc.engine.trainer import Trainer
from plsc.inference.embedding import EmbeddingPath, to_unit_length

SIDE, TRAINED = 32, 15  # of 20 images a character, each by another drawer


class Characters:
    """Images of some characters, [32, 32, 3] uint8.

    Args:
        images: name -> its images.
        names: of the characters, in the order of their numbers.
        which: of the images of each.
    """

    def __init__(self, images: dict[str, list[np.ndarray]], names: list[str], which: slice) -> None:
        self.class_names, self.num_classes = names, len(names)
        self.items = [(image, label) for label, name in enumerate(names) for image in images[name][which]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.items[index]


def read(path: Path) -> dict[str, list[np.ndarray]]:
    """The images of each character of a zip file, by 'alphabet/character', ordered by drawer."""
    found: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".png"):
                image = Image.open(io.BytesIO(archive.read(name))).convert("L").resize((SIDE, SIDE), Image.BILINEAR)
                found.setdefault("/".join(name.split("/")[1:3]), []).append(np.stack([np.asarray(image)] * 3, axis=-1))
    return found


def train(data: Characters, folder: Path, epochs: int, **settings: object) -> Trainer:
    """Train; by a learning rate of 0.1 at its peak, whatever the number of ranks is."""
    ranks = init_topology().world_size
    config = Config(
        train_dataset=data,
        num_classes=data.num_classes,
        model_name="ResNetTiny",
        image_shape=(3, SIDE, SIDE),
        emb_dim=64,
        loss_type="dist_arcface",
        margin=0.3,
        scale=32.0,
        flip=False,
        augment_rotate=10.0,
        augment_crop=0.1,
        train_batch_size=64 // ranks,
        num_workers=0,
        lr_schedule="cosine",
        warmup_steps=20,
        train_epochs=epochs,
        model_save_dir=str(folder),
        max_last_checkpoint_num=1,
        with_test=False,
        **{"lr": 1.6, **settings},
    )
    trainer = Trainer(config)
    trainer.train()
    return trainer


def top1(trainer: Trainer, data: Characters) -> float:
    """The part of the images whose nearest class center is theirs."""
    config, collectives = trainer.config, trainer.collectives
    path = EmbeddingPath(
        image_shape=config.image_shape, flip=False, pixel_mean=config.pixel_mean, pixel_std=config.pixel_std
    )
    embedder = Embedder(trainer.backbone, path, emb_dim=config.emb_dim, batch_size=128)
    own = trainer.head.parameters["weight"].numpy()
    centers = to_unit_length(np.concatenate(collectives.gather_objects(own)))
    features = embedder([image for image, _ in data.items])
    found = (features @ centers.T).argmax(axis=1)
    return float((found == np.array([label for _, label in data.items])).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("omniglot", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints; that of before is used again")
    parser.add_argument("--epochs", type=int, default=12, help="of the runs from scratch; a multiple of 4")
    parser.add_argument("--kept", choices=["half", "none"], default="half", help="classes of before in the new data")
    parser.add_argument("--only", choices=["finetune"], help="only this, from the checkpoint that is there")
    arguments = parser.parse_args()
    first, second = (read(arguments.omniglot / f"images_background_small{number}.zip") for number in (1, 2))
    before, other = sorted(first), sorted(second.keys() - first.keys())  # two alphabets are in both
    kept = before[::2] if arguments.kept == "half" else []
    names = sorted([*kept, *other[: len(before[::2])]])
    action, what = ("by_name", "by name") if kept else ("new_head", "new head")
    images, rest = {**first, **second}, slice(TRAINED, None)
    data, unseen = Characters(images, names, slice(TRAINED)), Characters(images, names, rest)
    ranks, epochs, work = init_topology().world_size, arguments.epochs, arguments.work
    rows: dict[str, dict[str, float]] = {}

    def measure(name: str, *, folder: str, epochs: int, data: Characters, test: Characters, **settings: object) -> None:
        began = time.monotonic()
        trainer = train(data, work / folder, epochs, **settings)
        rows[name] = {"steps": trainer.step, "top-1": round(top1(trainer, test), 4)}
        rows[name]["seconds"] = round(time.monotonic() - began, 1)

    if not (work / "before").exists():
        own = Characters(first, before, slice(TRAINED)), Characters(first, before, rest)
        measure("before", folder="before", epochs=epochs, data=own[0], test=own[1])
    if arguments.only is None:
        measure("from scratch", folder=f"scratch-{action}", epochs=epochs, data=data, test=unseen)
        measure("from scratch, a quarter", folder=f"quarter-{action}", epochs=epochs // 4, data=data, test=unseen)
    for start in ("mean", "random"):
        measure(
            f"{what}, a quarter, {start}",
            folder=f"{action}-{start}-{ranks}",
            epochs=epochs // 4,
            data=data,
            test=unseen,
            checkpoint_dir=str(work / "before"),
            class_change=action,
            new_classes=start,
            lr=0.8,
        )
    if init_topology().is_main:
        print(json.dumps({"ranks": ranks, "classes": len(names), "new": len(names) - len(kept), **rows}, indent=1))


if __name__ == "__main__":
    main()

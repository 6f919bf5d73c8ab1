"""Train on the characters of an Omniglot zip and recognize those of another from one image each.

    python examples/characters.py OMNIGLOT

OMNIGLOT is a folder with images_background_small1.zip and images_background_small2.zip of
https://github.com/brendenlake/omniglot. The evaluation is that of Lake et al. (Science, 2015): 20 characters of one
alphabet, one image of each by one drawer is known, one by another drawer is asked.
"""

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plsc import Entry


class Characters:
    """The images of a zip, in memory. Training takes any object with len(), [i] -> (image, label) and class_names."""

    def __init__(self, path: Path, without: Sequence[str] = ()) -> None:
        self.class_names, self.items = [], []
        with zipfile.ZipFile(path) as archive:
            for file in sorted(archive.namelist()):
                name = "/".join(file.split("/")[-3:-1])  # alphabet/character
                if not file.endswith(".png") or name in without:
                    continue
                if name not in self.class_names[-1:]:
                    self.class_names.append(name)
                self.items.append((archive.read(file), len(self.class_names) - 1))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.items[index]


def one_shot_accuracy(embeddings: np.ndarray, names: list[str], ways: int, trials: int) -> float:
    """The share of characters that are found among `ways`; embeddings are [characters, drawers, D]."""
    rng, alphabets = np.random.default_rng(0), {}
    for number, name in enumerate(names):
        alphabets.setdefault(name.split("/")[0], []).append(number)
    large = [numbers for numbers in alphabets.values() if len(numbers) >= ways]
    if not large:
        raise SystemExit(f"no alphabet has {ways} characters; choose fewer --ways")
    found = []
    for _ in range(trials):
        chosen = rng.choice(large[rng.integers(len(large))], ways, replace=False)
        known, asked = rng.choice(embeddings.shape[1], 2, replace=False)
        cosines = embeddings[chosen, asked] @ embeddings[chosen, known].T
        found.append(np.mean(cosines.argmax(axis=1) == np.arange(ways)))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("omniglot", type=Path, nargs="?", default=Path("example_data/omniglot"))
    parser.add_argument("--output", type=Path, default=Path("example_output/characters"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ways", type=int, default=20)
    options = parser.parse_args()
    seen = Characters(options.omniglot / "images_background_small1.zip")
    unseen = Characters(options.omniglot / "images_background_small2.zip", without=seen.class_names)

    entry = Entry()
    entry.train_dataset = seen
    entry.set_model_name("ResNetTiny")
    entry.set_image_shape((3, 32, 32))
    entry.set_emb_size(64)
    entry.set_scale(32)
    entry.set_flip(False)  # a mirrored b is a d
    entry.set_augment(rotate=10, crop=0.1)
    entry.set_train_batch_size(64)
    entry.set_num_workers(0)  # the images are in memory
    entry.set_lr(0.8)
    entry.set_lr("cosine")
    entry.set_warmup_epochs(1)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)
    entry.train()

    trained = Entry()
    trained.set_checkpoint_dir(options.output)
    embeddings = trained.predict([image for image, _ in unseen.items])
    embeddings = embeddings.reshape(len(unseen.class_names), -1, embeddings.shape[1])  # each has as many drawers
    accuracy = one_shot_accuracy(embeddings, unseen.class_names, options.ways, trials=400)
    print(f"{len(seen.class_names)} characters trained, {len(unseen.class_names)} others asked")
    print(f"one-shot accuracy among {options.ways}: {accuracy:.3f}; by guessing {1 / options.ways:.3f}")


if __name__ == "__main__":
    main()

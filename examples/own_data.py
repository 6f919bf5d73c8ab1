"""Train on a kind of data of your own: images and their classes in an SQLite database.

    python examples/own_data.py DATABASE

DATABASE is a file as examples/draw_data.py writes one, products.sqlite.
"""

import argparse
import os
import sqlite3
import threading
from pathlib import Path

import numpy as np

from plsc import Entry, open_records
from plsc.data.records import Record, Records
from plsc.data.sources import register_source


@register_source(suffixes=[".sqlite"])
class SqliteRecords(Records):
    """The table images(name TEXT, image BLOB), whose images are files as bytes; a class is a name.

    Reader processes are forked, and a connection must be used, and closed, only by the process and the thread that
    opened it. So each opens its own, when it reads its first image, and keeps those of others open.
    """

    format = "SQLite"
    uses_global_random = False  # saves seeding NumPy's generators before each image

    def __init__(self, path: str) -> None:
        self.path, self._connections = Path(path), {}
        names = [name for (name,) in self._query("SELECT name FROM images ORDER BY rowid")]
        self.class_names = sorted(set(names))
        self.num_classes = len(self.class_names)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        self.labels = np.array([numbers[name] for name in names], np.int64)  # known without reading an image
        self._rows = [row for (row,) in self._query("SELECT rowid FROM images ORDER BY rowid")]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        ((image,),) = self._query("SELECT image FROM images WHERE rowid = ?", self._rows[index])
        return Record(image, int(self.labels[index]))

    def describe(self, index: int) -> str:
        """What errors call an image."""
        return f"{self.path}, row {self._rows[index]}"

    def _query(self, text: str, *values: int) -> list[tuple]:
        place = os.getpid(), threading.get_ident()
        if place not in self._connections:
            self._connections[place] = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
        return self._connections[place].execute(text, values).fetchall()

    def __getstate__(self) -> dict:
        return {**vars(self), "_connections": {}}  # for a process that gets the object by pickle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path, nargs="?", default=Path("example_data/products.sqlite"))
    parser.add_argument("--output", type=Path, default=Path("example_output/own_data"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()

    entry = Entry()
    entry.set_dataset_dir(options.database)  # the suffix says which class opens it
    entry.set_val_split(0.2)
    entry.set_model_name("ResNetTiny")
    entry.set_image_shape((3, 32, 32))
    entry.set_emb_size(64)
    entry.set_scale(32)
    entry.set_flip(False)
    entry.set_train_batch_size(32)
    entry.set_lr(0.8)
    entry.set_train_epochs(options.epochs)
    entry.set_model_save_dir(options.output)
    entry.set_auto_resume(True)
    results = entry.train()
    images = open_records(options.database)
    print(f"{images.describe(0)}: {images.class_names[images[0].label]}")
    print(f"{len(images)} images of {images.num_classes} classes; top-1 {results['val/top1']:.3f}")


if __name__ == "__main__":
    main()

"""Train on a kind of data of your own: images and their classes in an SQLite database.

python examples/own_data.py DATABASE
python examples/own_data.py DATABASE --fill FOLDER    # first writes the images of class folders to it
"""

import argparse
import os
import sqlite3
from pathlib import Path

import numpy as np

from plsc import Entry, open_records
from plsc.data.records import Record, Records
from plsc.data.sources import register_source


@register_source(suffixes=[".sqlite"])
class SqliteRecords(Records):
    """The table images(name TEXT, image BLOB), whose images are files as bytes; a class is a name.

    Reader processes are forked, and a connection must not be used in a process that did not open it. So each process
    opens its own, when it reads its first image.
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
        if os.getpid() not in self._connections:
            connection = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            self._connections = {os.getpid(): connection, **self._connections}
        return self._connections[os.getpid()].execute(text, values).fetchall()


def fill(path: Path, folder: Path) -> None:
    images = open_records(folder)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE images(name TEXT, image BLOB)")
        rows = ((images.class_names[label], image) for image, label in images)
        connection.executemany("INSERT INTO images VALUES (?, ?)", rows)
    connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument("--fill", type=Path, help="class folders to write to the database, which must not exist")
    parser.add_argument("--output", type=Path, default=Path("example_output/own_data"))
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    if options.fill and options.database.exists():
        parser.error(f"{options.database} exists and is not overwritten; leave out --fill")
    if options.fill:
        fill(options.database, options.fill)

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

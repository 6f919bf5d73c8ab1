"""Draw small data sets for the other examples, in the layouts that real ones have: letters and symbols of fonts.

    python examples/draw_data.py

It writes example_data/ with
    products/, new_products/  class folders; half of the classes are in both
    products.sqlite           the images of products/ in a table, for own_data.py
    faces/                    RecordIO, with two verification sets of other classes
    omniglot/                 two zips of characters, as those of https://github.com/brendenlake/omniglot
"""

import argparse
import contextlib
import sqlite3
import zipfile
from pathlib import Path

import cv2

from plsc.data.convert.conversion import convert
from plsc.data.sources.glyphs import GlyphRecords, glyph_verification_set


def draw_folders(folder: Path, first: int, classes: int, images: int, seed: int) -> None:
    """Class folders with `images` images in the first class, and fewer in others, down to half."""
    records = GlyphRecords(classes, images, image_size=32, first_identity=first, seed=seed)
    for label in range(classes):
        path = folder / f"product_{first + label:03d}"
        path.mkdir(parents=True)
        for number in range(images - label % (images // 2 + 1)):
            cv2.imwrite(str(path / f"{number:02d}.png"), cv2.cvtColor(records.draw(label, number), cv2.COLOR_RGB2BGR))


def write_database(path: Path, folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE images(name TEXT, image BLOB)")
        rows = ((file.parent.name, file.read_bytes()) for file in sorted(folder.glob("*/*.png")))
        connection.executemany("INSERT INTO images VALUES (?, ?)", rows)


def draw_zip(path: Path, first: int, classes: int, drawers: int) -> None:
    """Two alphabets, black on white, 105 x 105 pixels: NAME/ALPHABET/character01/0001_01.png."""
    records = GlyphRecords(classes, drawers, image_size=105, first_identity=first)
    with zipfile.ZipFile(path, "x") as archive:
        for index, (image, label) in enumerate(records):
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            _, ink = cv2.threshold(gray, 0, 255, cv2.THRESH_OTSU)
            alphabet, character = divmod(label, classes // 2)
            name = f"character{character + 1:02d}/{label + 1:04d}_{index % drawers + 1:02d}.png"
            archive.writestr(f"{path.stem}/Alphabet_{first + alphabet}/{name}", cv2.imencode(".png", ink)[1].tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("example_data"), help="folder to write; must not exist")
    parser.add_argument("--classes", type=int, default=40, help="of each set, an even number")
    parser.add_argument("--images", type=int, default=12, help="of a class, at most")
    parser.add_argument("--pairs", type=int, default=400, help="of each verification set, a multiple of 20")
    options = parser.parse_args()
    output, classes, images = options.output, options.classes, options.images
    if output.exists():
        parser.error(f"{output} exists and is not overwritten; choose another folder with --output")
    output.mkdir(parents=True)
    draw_folders(output / "products", 0, classes, images, seed=0)
    write_database(output / "products.sqlite", output / "products")
    draw_folders(output / "new_products", classes // 2, classes, images, seed=1)

    convert(GlyphRecords(classes, images, image_size=32), output / "faces", to="rec")
    unseen = {"num_identities": classes, "num_pairs": options.pairs}
    glyph_verification_set(2 * classes, **unseen).save(output / "faces" / "unseen.bin")
    glyph_verification_set(2 * classes, **unseen, image_size=16).save(output / "faces" / "coarse.bin")

    (output / "omniglot").mkdir()
    for number in (1, 2):
        path = output / "omniglot" / f"images_background_small{number}.zip"
        draw_zip(path, 3 * classes + number * classes, classes, images)
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")


if __name__ == "__main__":
    main()

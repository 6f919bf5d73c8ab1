"""Six small images in each of the layouts that training data comes in, and writers of odd files."""

from __future__ import annotations

import base64
import csv
import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from plsc.cli.main import app
from plsc.data.recordio import RecordIOWriter

IMAGES = [cv2.imencode(".png", np.full((4 + n, 5, 3), 10 * n, np.uint8))[1].tobytes() for n in range(6)]
LABELS = [0, 0, 1, 1, 2, 2]
OMNIGLOT = Path(__file__).parents[1] / "data" / "files" / "omniglot"  # written by other programs, see its README
fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_list(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    for n, image in enumerate(IMAGES):
        (folder / "images" / f"{n}.png").write_bytes(image)
    (folder / "label.txt").write_text("".join(f"images/{n}.png {label}\n" for n, label in enumerate(LABELS)))
    return folder


def make_folders(folder: Path) -> Path:
    for n, image in enumerate(IMAGES):
        (folder / "abc"[LABELS[n]]).mkdir(parents=True, exist_ok=True)
        (folder / "abc"[LABELS[n]] / f"{n}.png").write_bytes(image)
    return folder


def make_rec(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with RecordIOWriter(folder / "train.rec") as writer:
        for n, image in enumerate(IMAGES):
            writer.write(n, LABELS[n], image=image)
    return folder


def line(n: int, label_first: bool) -> str:
    columns = [base64.b64encode(IMAGES[n]).decode(), str(LABELS[n])]
    return "\t".join(reversed(columns) if label_first else columns) + "\n"


def make_base64(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "part-0").write_text("".join(line(n, label_first=True) for n in range(4)))
    (folder / "part-1").write_text("\n" + "".join(line(n, label_first=False) for n in (4, 5)).rstrip("\n"))
    (folder / "file_list.txt").write_text("part-0\npart-1\n")
    return folder


def run(*arguments):
    """`plsc data` with these arguments; what it raised is in the result."""
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def make_tar(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            add(tar, "LICENSE", b"a note that is no sample")
            for n in range(3 * shard, 3 * shard + 3):
                add(tar, f"a.b/{'ü' * 80}{n:06d}.png", IMAGES[n])
                if shard:
                    add(tar, f"a.b/{'ü' * 80}{n:06d}.json", json.dumps({"label": LABELS[n]}).encode())
                else:
                    add(tar, f"a.b/{'ü' * 80}{n:06d}.cls", b"%d\n" % LABELS[n])
    return folder


def make_csv(folder: Path) -> Path:
    make_list(folder)
    (folder / "label.txt").unlink()
    rows = "".join(f"x,images/{n}.png,{'abc'[label]}\n" for n, label in enumerate(LABELS))
    (folder / "train.csv").write_text("note,Path,identity\n" + rows)
    return folder


def make_table(path: Path, labels) -> Path:
    """A CSV with one row per label, of images that need not exist."""
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *((f"{n}.png", label) for n, label in enumerate(labels))])
    return path


def pack_tar(path: Path, files, links=()) -> None:
    """A tar of (name, bytes) files, and of (name, type) links to the first of them."""
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            add(tar, name, data)
        for name, kind in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, files[0][0]
            tar.addfile(member)


def write_rec(path: Path, images: list, labels=None) -> Path:
    """A `.rec` of these bytes, in classes 0 to 2 by default."""
    with RecordIOWriter(path) as writer:
        for key, image in enumerate(images):
            writer.write(key, key % 3 if labels is None else labels[key], image=image)
    return path

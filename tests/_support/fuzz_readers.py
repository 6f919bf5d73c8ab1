"""Coverage-guided fuzzing of every reader of untrusted bytes, with atheris (`pip install atheris`). Run it at the top:

    PYTHONPATH=. python tests/_support/fuzz_readers.py recordio -max_total_time=60 -rss_limit_mb=1024 -timeout=5

Readers: recordio, base64, list, csv, tar, bin. Whatever the bytes, a reader may raise the library's own errors only. A
crash, another exception, a hang or an allocation beyond the limit ends the run. The tests in tests/data/ make the same
check with hypothesis on fewer examples.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["plsc.data", "tarfile"]):
    from plsc.data.recordio import frames, pack
    from plsc.data.sources.base64_text import Base64Records
    from plsc.data.sources.lists import ListRecords
    from plsc.data.sources.recordio import RecordIORecords
    from plsc.data.sources.tables import CsvRecords
    from plsc.data.sources.tar_shards import TarRecords
    from plsc.data.verification_set import VerificationSet
from plsc.errors import PLSCError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
SEEDS = {
    "recordio": [
        b"".join(frames(pack(label, key, image=PNG)) for key, label in enumerate((1, [2, 3], 0))),
        frames(pack(1, 1, image=struct.pack("<I", 0xCED7230A) * 3)),
        frames(pack([2, 3], 0, image=b"")),
    ],
    "base64": [b"iVBORw0KGgoAAAAA\t1\niVBORw0KGgo=\t0\n", b"0\tiVBORw0KGgoAAAAA\n"],
    "list": [b"images/0.jpg 0\n# x\nb c.png\t12 # y\n"],
    "csv": [b'image,label\na.png,0\n"b,c.png",x\n'],
    "tar": [],
    "bin": [],
}


def reads_records(make, name):
    def run(path: Path) -> None:
        records = make(path)
        for index in range(len(records)):
            with contextlib.suppress(PLSCError):
                assert len(records[index].image) <= path.stat().st_size
        assert len(records.labels) == len(records)

    return name, run


def recordio(path: Path) -> None:
    for recover in (False, True):
        with contextlib.suppress(PLSCError):
            reads_records(functools.partial(RecordIORecords, recover=recover), "")[1](path)


READERS = {
    "recordio": ("train.rec", recordio),
    "base64": reads_records(Base64Records, "part"),
    "list": reads_records(ListRecords, "label.txt"),
    "csv": reads_records(CsvRecords, "a.csv"),
    "tar": reads_records(TarRecords, "a.tar"),
    "bin": ("a.bin", VerificationSet.load),
}


def seeds(kind: str, folder: Path) -> None:
    for number, data in enumerate(SEEDS[kind]):
        (folder / str(number)).write_bytes(data)
    if kind == "bin":
        VerificationSet("a", [PNG, PNG, PNG, PNG], is_same=[True, False]).save(folder / "a")
        VerificationSet("b", [PNG, PNG, PNG, PNG], is_same=[True, False], folds=[0, 1]).save(folder / "b")
    if kind == "tar":
        import io
        import tarfile

        with tarfile.open(folder / "a", "w") as tar:
            for name, data in (("0.png", PNG), ("0.cls", b"1"), ("x" * 120 + ".png", PNG), ("x" * 120 + ".cls", b"0")):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind not in READERS:
        sys.exit(f"name one reader of {', '.join(READERS)}")
    logging.disable()
    name, read = READERS[kind]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path, corpus = Path(folder) / name, Path(folder) / "corpus"
        corpus.mkdir()
        seeds(kind, corpus)

        def once(data: bytes) -> None:
            path.write_bytes(data)
            with contextlib.suppress(PLSCError):
                read(path)

        atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

"""The embedded data set: the same everywhere, legible, and fair to verify on."""

import builtins
import hashlib
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from plsc.data.images import decode
from plsc.data.sources import glyphs
from plsc.data.sources.glyphs import GlyphRecords, count_identities, glyph_verification_set
from plsc.data.verification_set import VerificationSet
from plsc.errors import ConfigError, DataError, MissingDependencyError

pytest.importorskip("matplotlib", reason="the fonts come with matplotlib")

ROOT = Path(__file__).resolve().parents[3]


def digest(records, indices):
    return hashlib.sha256(b"".join(records[index].image.tobytes() for index in indices)).hexdigest()


def test_records_are_what_a_loader_expects():
    records = GlyphRecords(num_identities=7, images_per_identity=3, image_size=24)
    assert len(records) == 21 and records.num_classes == 7
    for index in range(21):
        image, label = records[index]
        assert image.shape == (24, 24, 3) and image.dtype == np.uint8 and label == index // 3
    with pytest.raises(IndexError):
        records[21]
    assert records[np.int64(20)].label == 6


def test_the_description_names_glyph_and_image():
    records = GlyphRecords(5, 3)
    point = records._glyphs[2][0]
    assert records.describe(7) == f"glyph U+{point:04X}, image 1"


def test_equal_in_another_process_in_another_order():
    records = GlyphRecords(50, 4, seed=3)
    order = [190, 7, 0, 55, 199]
    expected = digest(records, order)
    list(map(records.__getitem__, range(20)))
    assert digest(pickle.loads(pickle.dumps(records)), order) == expected
    code = f"""
import hashlib
from plsc.data.sources.glyphs import GlyphRecords
records = GlyphRecords(50, 4, seed=3)
print(hashlib.sha256(b"".join(records[index].image.tobytes() for index in {order})).hexdigest())
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.strip() == expected


def test_an_image_depends_on_its_identity_and_number_alone():
    whole = GlyphRecords(60, 5)
    assert np.array_equal(GlyphRecords(20, 9, first_identity=40)[0].image, whole[40 * 5].image)
    assert np.array_equal(GlyphRecords(20, 9, first_identity=40).draw(3, 4), whole.draw(43, 4))
    assert not np.array_equal(GlyphRecords(60, 5, seed=1)[0].image, whole[0].image)
    assert GlyphRecords(60, 5, seed=1)._glyphs == whole._glyphs  # or held-out identities would leak in


def test_images_of_an_identity_vary_and_each_has_ink():
    records = GlyphRecords(300, 3)
    images = [records[index].image.astype(float) for index in range(len(records))]
    assert len({image.tobytes() for image in images}) == len(images)
    for index, image in enumerate(images):
        paper = np.median(image[0], axis=0)
        inked = (np.abs(image - paper).max(axis=2) > 50).mean()
        assert 0.01 < inked < 0.75, f"{records.describe(index)}: {inked:.0%} ink"


def test_no_glyph_touches_more_than_the_rim():
    rng = np.random.default_rng(0)
    for point, faces in glyphs._table()[:300]:
        field = glyphs._place(glyphs._ink(faces[0], point, 48), 32, rng)
        rim = field.sum() - field[1:-1, 1:-1].astype(int).sum()
        assert rim < 0.1 * field.sum(), f"U+{point:04X} is cut off"


def groups(*texts):
    """For each text, which of the signs each sign was merged with: a number per sign."""
    faces = glyphs._faces_by_code_point()
    drawings = [glyphs._canonical(glyphs._ink(faces[ord(sign)][0], ord(sign), 48)) for text in texts for sign in text]
    first_of = iter(glyphs._merge_alike(np.stack(drawings)))
    return [[next(first_of) for _ in text] for text in texts]


def test_look_alikes_are_one_identity_and_others_are_not():
    alike = groups("AΑА", "oOοо", "CcСс", "HΗН", "-‐")
    assert all(len(set(text)) == 1 for text in alike)
    assert len({text[0] for text in alike}) == len(alike)
    for different in ("bdpqg", "MWE3", "nu", "69", "АБВГД", "ЖЩЮЯ", "→←↑↓", "?!&@"):
        assert len(set(groups(different)[0])) == len(different), different


def test_merging_follows_chains():
    steps = [np.zeros([24, 24]) for _ in range(4)]
    for step, drawing in enumerate(steps[:3]):
        drawing[4 : 16 + step, 6:18] = 63
    steps[3][0:4] = 63
    alike = np.corrcoef(np.stack(steps).reshape(4, -1))
    assert alike[0, 1] > glyphs._ALIKE and alike[1, 2] > glyphs._ALIKE > alike[0, 2]
    assert glyphs._merge_alike(np.stack(steps)).tolist() == [0, 0, 0, 3]


def test_the_table_is_large_and_free_of_repeats():
    glyphs._table.cache_clear()
    start = time.perf_counter()
    table = glyphs._table()
    assert time.perf_counter() - start < 15  # about 1 s on one core
    assert 2500 < len(table) == count_identities()
    assert len({point for point, _ in table}) == len(table)
    assert all(len(faces) >= 4 for _, faces in table)


def test_a_range_of_identities_is_a_sample_of_all_scripts():
    shares = [
        np.mean([0x370 <= point < 0x530 for point, _ in glyphs._table()[start : start + 800]])
        for start in (0, 800, 1600, 2400)
    ]
    assert min(shares) > 0.05 and max(shares) < 2 * min(shares)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"num_identities": 10_000}, DataError, "num_identities=10000, expected at most 3"),
        (
            {"num_identities": 10, "first_identity": 9_000},
            DataError,
            "first_identity=9000 .*the number of identities in the fonts",
        ),
        ({"num_identities": 0}, ConfigError, "num_identities: got 0, expected 1 or more"),
        ({"images_per_identity": 1.5}, ConfigError, "images_per_identity: got 1.5, expected an integer"),
        ({"image_size": 8}, ConfigError, "image_size: got 8, expected 16 to 512"),
        ({"seed": -1}, ConfigError, "seed: got -1, expected 0 or more"),
        ({"first_identity": "a"}, ConfigError, "first_identity: got 'a'"),
    ],
)
def test_wrong_settings_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        GlyphRecords(**arguments)


@pytest.mark.parametrize("missing", ["matplotlib", "fontTools"])
def test_a_missing_package_says_what_to_install(missing, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setitem(sys.modules, missing, None)
    glyphs._table.cache_clear()
    glyphs._faces.cache_clear()
    try:
        with pytest.raises(
            MissingDependencyError, match=rf"glyph data set needs {missing}.*pip install matplotlib fonttools"
        ):
            GlyphRecords(5)
    finally:
        glyphs._table.cache_clear()
        glyphs._faces.cache_clear()


# Pairs.


def test_pairs_are_balanced_in_every_fold_and_drawn_from_the_range_alone():
    drawn = []

    class Spy(GlyphRecords):
        def draw(self, label, number):
            drawn.append((label, number))
            return super().draw(label, number)

    original, glyphs.GlyphRecords = glyphs.GlyphRecords, Spy
    try:
        pairs = glyph_verification_set(first_identity=100, num_identities=30, num_pairs=200, image_size=16)
    finally:
        glyphs.GlyphRecords = original
    assert isinstance(pairs, VerificationSet) and len(pairs) == 200
    assert pairs.images[0].shape == (16, 16, 3)
    for fold in np.array_split(pairs.is_same, 10):
        assert fold.sum() == 10 == len(fold) / 2
    labels = np.array([label for label, _ in drawn]).reshape(-1, 2)
    assert ((labels[:, 0] == labels[:, 1]) == pairs.is_same).all()
    assert labels.min() >= 0 and set(labels.reshape(-1)) == set(range(30))
    assert len({image.tobytes() for image in pairs.images}) == 400


def test_pairs_are_the_same_again_and_others_with_another_seed():
    first, again, other = (glyph_verification_set(50, 20, num_pairs=40, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first.images, again.images))
    assert not all(np.array_equal(a, b) for a, b in zip(first.images, other.images))


def test_two_identities_are_enough_and_different_pairs_differ():
    assert glyph_verification_set(0, 2, num_pairs=20).is_same.sum() == 10


def test_pairs_saved_and_loaded_keep_their_pixels(tmp_path):
    pairs = glyph_verification_set(0, 5, num_pairs=20)
    pairs.save(tmp_path / "glyphs.bin")
    loaded = VerificationSet.load(tmp_path / "glyphs.bin")
    assert all(np.array_equal(decode(a), b) for a, b in zip(loaded.images, pairs.images))


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"num_pairs": 30}, ConfigError, "num_pairs: got 30, expected a multiple of 20"),
        ({"num_pairs": 0}, ConfigError, "num_pairs: got 0, expected 1 or more"),
        ({"num_identities": 1}, ConfigError, "num_identities: got 1, expected 2 or more"),
        ({"first_identity": 9_000}, DataError, "expected at most 3"),
    ],
)
def test_wrong_pair_settings_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        glyph_verification_set(**arguments)

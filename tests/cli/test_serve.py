"""`plsc gallery`: which files of a folder are taken for images."""

from __future__ import annotations

import pytest

from plsc.cli.serve import _files
from plsc.errors import ConfigError


def test_a_folder_gives_every_kind_of_image_that_data_sets_may_hold(tmp_path):
    folder = tmp_path / "ann"
    folder.mkdir()
    (folder / "notes.txt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no image in it, expected files of .jpg, .jpeg, .jfif, .png, .*.gif"):
        _files([folder])
    for name in ("1.JPG", "2.tif", "3.gif", "4.webp"):
        (folder / name).write_bytes(b"x")
    assert _files([folder]) == [("ann", folder / name) for name in ("1.JPG", "2.tif", "3.gif", "4.webp")]

"""What checkpoints hold, for tests that compare runs."""

from __future__ import annotations

import numpy as np

from plsc.checkpoint import Checkpoint, list_checkpoints


def names(folder):
    """The names of the checkpoints in a folder, in order."""
    return [path.name for path in list_checkpoints(folder)]


def contents(path):
    """All tensors of a checkpoint, by name."""
    saved = Checkpoint(path)
    return {name: saved.read(name) for name in saved.names("")}


def assert_equal(found, expected):
    """Two results of `contents` have the same names and bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)

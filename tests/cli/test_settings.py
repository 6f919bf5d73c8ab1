"""Settings as flags and as a file."""

from __future__ import annotations

import sys

import pytest

import plsc
from plsc.cli.settings import merge_settings
from plsc.config import Config
from tests._support.ranks import run


def test_unknown_settings_in_a_file_name_the_near_miss(tmp_path):
    (tmp_path / "run.yaml").write_text("train_batchsize: 3\n")
    with pytest.raises(plsc.ConfigError, match=r"run\.yaml: there is no .*; did you mean 'train_batch_size'"):
        merge_settings(Config, tmp_path / "run.yaml", {})


def test_every_setting_is_a_flag():
    _, output = run(
        [
            sys.executable,
            "-c",
            "import os; os.environ['COLUMNS'] = '400'; import sys; sys.argv = "
            "['plsc', 'train', '--help']; from plsc.cli.main import main; main()",
        ]
    )
    missing = [name for name in Config.scalar_fields() if f"--{name.replace('_', '-')}" not in output]
    assert missing == ["amp_lists"]

"""The folder of the logs is private and holds no environment."""

from __future__ import annotations

import json

import pytest

from plsc.distributed.launching.logs import LogFolder
from plsc.errors import ConfigError


def test_each_start_has_a_private_folder_of_its_own(tmp_path):
    folders = [LogFolder(tmp_path / "log") for _ in range(3)]
    assert len({logs.path for logs in folders}) == 3
    for logs in folders:
        assert logs.path.stat().st_mode & 0o777 == 0o700
        assert logs.reports.parent == logs.path.absolute()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "log").write_text("")
    with pytest.raises(ConfigError, match="log: the folder of the logs cannot be made: .*; choose .* --log_dir"):
        LogFolder(tmp_path / "log")


def test_the_environment_is_removed_and_nothing_else(tmp_path):
    logs = LogFolder(tmp_path)
    for name in ("envlog.0", "envlog.1", "default.abcdef.log", "job-7.ghijkl.log"):
        (logs.path / name).write_text("SECRET=1")
    for name in ("workerlog.0", "default.gpu.log", "stacks.1.log"):
        (logs.path / name).write_text("kept")
    backup = logs.path / "backup_env.0.json"
    backup.write_text('{"SECRET": "1", "PADDLE_TRAINER')  # Paddle's launcher is writing it
    logs.remove_environment()
    backup.write_text(json.dumps({"SECRET": "1", "PADDLE_TRAINER_ENDPOINTS": "a:1,b:2"}))
    logs.remove_environment()
    names = {path.name for path in logs.path.iterdir()}
    assert names == {"workerlog.0", "default.gpu.log", "stacks.1.log", "backup_env.0.json", "reports"}
    # Ranks read there what Paddle has left out of their environment because it is too long.
    assert json.loads(backup.read_text()) == {"PADDLE_TRAINER_ENDPOINTS": "a:1,b:2"}

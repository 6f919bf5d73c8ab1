"""run.json: starts and warnings of a run, across a resumed one and without credentials."""

from __future__ import annotations

import logging

from plsc.engine.observers import Observer
from plsc.engine.observers.run_notes import NOTES_FILE, _Warnings, read_notes

log = logging.getLogger("plsc")


class Warns(Observer):
    """Warns once after each step, of a URL with credentials, and in other words of the first step."""

    def on_step(self, step):
        log.warning("s3://key:secret@bucket is slow")
        if step.number == 1:
            log.warning("only once")


def test_a_resumed_run_adds_a_start_and_each_warning_is_there_once(entry, tmp_path):
    entry.add_observer(Warns())
    entry.train()
    entry.set_checkpoint_dir(tmp_path / "output")
    entry.set_train_epochs(2)
    entry.train()
    starts, warnings = read_notes(tmp_path / "output")
    assert [start["step"] for start in starts] == [0, 3]
    assert starts[0]["ranks"] == 1 and starts[0]["device"] in ("cpu", "gpu")
    assert warnings.count("s3://bucket is slow") == warnings.count("only once") == 1
    assert not any(isinstance(handler, _Warnings) for handler in log.handlers)


def test_another_run_in_the_folder_begins_anew(entry, tmp_path):
    entry.train()
    (tmp_path / "output" / "0").rename(tmp_path / "away")
    entry.train()
    assert [start["step"] for start in read_notes(tmp_path / "output")[0]] == [0]


def test_a_damaged_file_is_none(tmp_path):
    for content in ("", "[]", '{"starts": 3, "warnings": []}', '{"starts": []}'):
        (tmp_path / NOTES_FILE).write_text(content)
        assert read_notes(tmp_path) == ([], [])

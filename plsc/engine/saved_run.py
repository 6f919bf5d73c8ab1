"""The settings of a run from its checkpoints, so that `plsc train --resume` needs no other flag."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from plsc.checkpoint import MANIFEST, Checkpoint, is_copy, list_checkpoints
from plsc.config import Config
from plsc.engine.about import About
from plsc.errors import CheckpointError, ConfigError
from plsc.utils.hints import flag_of, setter
from plsc.utils.locations import is_remote

# Where the run begins and saves is given by what it is resumed from.
_OF_THE_START = ("checkpoint_dir", "model_save_dir", "auto_resume", "pretrained")
# Settings that may be paths. One without a file is a pattern or the name of an object.
_PATHS = ("dataset_dir", "val_dataset_dir")


def resumed_settings(place: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that goes on: those of a checkpoint, and in their place those that are given.

    Args:
        place: the folder into which the run saves, of which the newest checkpoint is taken; or one of its checkpoints.
        given: {name: value} that goes before the checkpoint's.

    Returns:
        {name: value} without defaults. Of a folder, `auto_resume` is on: settings that decide the result must be those
        of the checkpoint. Of a checkpoint, `checkpoint_dir` names it: they may differ, with a warning.

    Raises:
        CheckpointError: there is no checkpoint; or it does not hold the settings of a run that the command line can
            start.
        ConfigError: a path in the settings is relative, and there is nothing there from this folder.
    """
    if is_remote(place):
        raise CheckpointError(
            f"{place}: settings are read from local checkpoints only; give the settings of the run as flags or a file, "
            f"with {setter('auto_resume', True)}"
        )
    path = Path(place)
    is_checkpoint = (path / MANIFEST).is_file()
    about, found = _about(path) if is_checkpoint else _newest(path)
    saved = _settings_of(about, found)
    for names in (("train_epochs", "train_steps"), ("warmup_epochs", "warmup_steps")):
        if any(given.get(name) is not None for name in names):  # each of the two un-sets the other
            for name in names:
                saved.pop(name, None)
    start: dict[str, Any]
    if is_checkpoint:
        start = {"checkpoint_dir": str(path), "model_save_dir": str(path.absolute().parent)}
    else:
        start = {"auto_resume": True, "model_save_dir": str(path)}
    values = {name: value for name, value in {**saved, **start}.items() if name not in given} | given
    _check_paths(values, given, found)
    return values


def _newest(folder: Path) -> tuple[About, Path]:
    """What the newest checkpoint whose manifest is whole says. Which one is loaded is decided later."""
    listed = list_checkpoints(folder) if folder.is_dir() else []
    if listed and is_copy(listed[-1]):
        raise CheckpointError(f"{listed[-1]}: was saved under another name; to go on from it, give its folder itself")
    first: CheckpointError | None = None
    for path in reversed(listed):
        try:
            return _about(path)
        except CheckpointError as error:
            first = first or error
    if first is not None:
        raise first
    raise CheckpointError(
        f"{folder}: there is no checkpoint to go on from; give the folder that the run saved into (model_save_dir of "
        f"its settings), or one of the checkpoints in it"
    )


def _about(path: Path) -> tuple[About, Path]:
    saved = Checkpoint(path)
    return About.of(saved), saved.path


def _settings_of(about: About, path: Path) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    saved = about.settings.model_dump()
    advice = f"give the settings of the run as flags or a file, with {setter('auto_resume', True)}"
    if "dataset_dir" not in saved or "train_epochs" not in saved:
        raise CheckpointError(f"{path}: holds no settings of the run, as from an older version of PLSC; {advice}")
    if about.settings.model_name is None:
        raise CheckpointError(
            f"{path}: a script with a network of its own ({about.network or 'an unknown class'}) trained it, and no "
            f"flag can give that; start the script again, with {setter('auto_resume', True)}"
        )
    defaults = Config().model_dump(mode="json")
    known = Config.scalar_fields()
    foreign = sorted(name for name in saved if name not in known)
    if foreign:
        raise CheckpointError(
            f"{path}: holds settings that this version of PLSC does not know: {', '.join(foreign)}; go on with the "
            f"version that wrote it, or {advice}"
        )
    values = {name: value for name, value in saved.items() if name not in _OF_THE_START and value != defaults.get(name)}
    problems = Config.find_problems(values)
    if problems:
        raise CheckpointError(
            f"{path}: its settings cannot be given on the command line, as of a run whose script gave an object; start "
            f"the script again: {'; '.join(problem.text for problem in problems)}"
        )
    return values


def _check_paths(values: dict[str, Any], given: dict[str, Any], found: Path) -> None:
    for name in _PATHS:
        place = values.get(name)
        if name in given or not isinstance(place, str) or is_remote(place) or glob.has_magic(place):
            continue
        path = Path(place)
        if not path.is_absolute() and not path.exists():
            raise ConfigError(
                f"{name}: '{place}' of {found} is relative to the folder in which the run was started, and is not in "
                f"{Path.cwd()}; start there, or give the present place: {flag_of(name)}"
            )

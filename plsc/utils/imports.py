"""A class or function by the name 'package.module:Class', as a setting gives it."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from plsc.errors import ConfigError
from plsc.utils.names import did_you_mean


def import_object(name: str, setting: str) -> Any:
    """The class or function that 'package.module:Class' names; the current folder is searched last.

    Args:
        name: as the user gave it.
        setting: the setting that holds it, for messages.

    Raises:
        ConfigError: the name has another form, there is no such module or class, or importing the module fails.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ConfigError(f"{setting}: got {name!r}; expected 'package.module:Class'")
    module = _import_module(name, module_name, setting)
    found = getattr(module, attribute, None)
    if not callable(found):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"{setting} '{name}': {module_name} has no class or function '{attribute}'; "
            f"{did_you_mean(attribute, callables)}define it there or correct the name"
        )
    return found


def _import_module(name: str, module_name: str, setting: str) -> Any:
    # A console script has its own folder on the path, not the current one. At the end it shadows no other module.
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a guard of __main__ may call sys.exit
        raise ConfigError(f"{setting} '{name}': {_describe(error, module_name, folder)}") from error
    finally:
        # The last one, in case an earlier entry is the same folder.
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(folder)]


def _describe(error: Exception | SystemExit, module_name: str, folder: str) -> str:
    """What failed in an import, and what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
        return (
            f"there is no module '{error.name}' in {folder} or on Python's path; run in the folder of the module, "
            f"set PYTHONPATH to it, or correct the name"
        )
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"importing {module_name} failed: {type(error).__name__}: {error}{where}; mend that module"

"""One command-line flag per setting of `Config`, derived from its one definition."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typing_extensions import get_type_hints

from plsc.config import Config, read_settings
from plsc.entry import Entry
from plsc.errors import ConfigError


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--config` and a flag per setting; it receives, first, an `Entry` that holds them."""
    hints = get_type_hints(command, include_extras=True)
    _, *own = inspect.signature(command).parameters.values()

    @functools.wraps(command)
    def wrapped(config: Path | None = None, **values: Any) -> Any:
        kept = {parameter.name: values.pop(parameter.name) for parameter in own}
        return command(make_entry(config, {name: value for name, value in values.items() if value is not None}), **kept)

    option = typer.Option(help="YAML file of settings; flags win over it")
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]) for parameter in own
    ]
    parameters.append(_keyword("config", Annotated[Path | None, option]))
    wrapped.__signature__ = inspect.Signature(parameters + _setting_flags())
    wrapped.__annotations__ = {
        name: parameter.annotation for name, parameter in wrapped.__signature__.parameters.items()
    }
    del wrapped.__wrapped__  # its annotations are not those of the flags
    return wrapped


def make_entry(config: Path | None, given: dict) -> Entry:
    """An `Entry` with the settings of a YAML file, then those given as flags.

    Raises:
        ConfigError: an unknown setting, a wrong value, or a setting that only a script can give.
    """
    entry = Entry()
    # Each of the two un-sets the other, so a flag must win over the file's.
    setters = {"train_epochs": entry.set_train_epochs, "train_steps": entry.set_train_steps}
    sources = [(f"{config}: ", read_settings(config) if config else {}), ("", given)]
    for origin, name, value in ((origin, *item) for origin, settings in sources for item in settings.items()):
        try:
            Config.check_name(name)
            if name not in Config.scalar_fields():
                raise ConfigError(f"'{name}' is a Python object; set it on an Entry in a script")
            if name in setters and value is not None:
                setters[name](value)
            else:
                setattr(entry, name, value)
        except ConfigError as error:
            raise ConfigError(f"{origin}{error}") from None
    return entry


def _setting_flags() -> list[inspect.Parameter]:
    flags = []
    for name, field in Config.scalar_fields().items():
        kind = plain_type(field.annotation)
        if kind is dict:
            continue  # operator lists belong in run.yaml
        flag = name.replace("_", "-")
        default = "" if field.default in (None, "") else f"; default {show_default(field.default)}"
        option = typer.Option(
            f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
            show_default=False,
            help=f"{field.description}{default}",
            rich_help_panel="Settings",
            metavar=None if kind is bool else "TEXT" if kind is str else kind.__name__.upper(),
        )
        # Text, so that the configuration is the one judge of values.
        flags.append(_keyword(name, Annotated[(bool if kind is bool else str) | None, option]))
    return flags


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def plain_type(annotation: Any) -> type:
    """The type behind Optional, Tuple, Dict and Literal."""
    origin = get_origin(annotation)
    if origin is Literal:
        return str
    if origin in (tuple, dict):
        return origin
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    return plain_type(inner[0]) if inner else annotation


def show_default(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

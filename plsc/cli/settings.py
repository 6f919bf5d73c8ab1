"""Command-line flags derived from a class of settings, and an `Entry` from the flags of `Config`.

Typer reads the parameters of a command from its signature. The signature is made here from the fields, by Python's
public `__signature__`, so that a new field is a new flag.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic.fields import FieldInfo

from plsc.cli.command import Command
from plsc.config import Config
from plsc.engine.stopping import held_back
from plsc.entry import Entry
from plsc.errors import ConfigError
from plsc.models.registry import find_backbone
from plsc.utils.hints import flag_of
from plsc.utils.settings import Settings, accepted_values, plain_type, takes_pairs, text_of

_Function = Callable[..., None]

# Columns that the tables of the help need. In fewer columns they cut the names of flags.
_TABLE_COLUMNS = 120


class SettingsCommand(Command):
    """A command of many flags. On a narrow terminal its help lists them without tables, so that no name is cut.

    Example:
        >>> @app.command(cls=SettingsCommand)
        ... @with_settings(Config)
        ... def train(settings): ...
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if shutil.get_terminal_size().columns >= _TABLE_COLUMNS:
            super().format_help(ctx, formatter)
            return
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        self.format_epilog(ctx, formatter)


def with_settings(
    settings: type[Settings], *, without: Collection[str] = (), hidden: Collection[str] = ()
) -> Callable[[_Function], _Function]:
    """A decorator that gives a command `--config FILE`, `--set NAME=VALUE` and a flag per setting.

    The first argument of the command is {name: value} of the settings in the file and of the flags, in order of
    precedence: flags come last and override `--set`, which overrides the file. Values of flags are text, so that only
    the settings check values.

    Args:
        settings: the class whose fields become flags.
        without: names of fields for which no flag is made.
        hidden: headings of groups whose flags are accepted, but not part of the help.
    """

    def decorate(command: _Function) -> _Function:
        hints = get_type_hints(command, include_extras=True)
        _, *parameters = inspect.signature(command).parameters.values()
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            for parameter in parameters
        ]
        names = {parameter.name for parameter in own}

        def run(config: Path | None = None, assignments: list[str] | None = None, **values: Any) -> None:
            given = _read_assignments(assignments or [], settings, without)
            for name, value in values.items():
                if name not in names and value is not None:
                    given.pop(settings.renamed.get(name, name), None)
                    given[name] = value
            command(
                merge_settings(settings, config, flags=given),
                **{name: value for name, value in values.items() if name in names},
            )

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        file = typer.Option(help="YAML file with a 'setting: value' per line. Flags override the file.")
        pairs = typer.Option("--set", metavar="NAME=VALUE", help="A setting by its name, as often as needed.")
        parameters = [
            *own,
            _keyword("config", Annotated[Path | None, file]),
            _keyword("assignments", Annotated[list[str] | None, pairs]),
            *_flags(settings, without, hidden),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # PEP 362
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _read_assignments(texts: list[str], settings: type[Settings], without: Collection[str]) -> dict[str, Any]:
    """{name: value} of `--set NAME=VALUE`; of several with one name the last."""
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        name = settings.renamed.get(name, name)
        if not sign or not name:
            raise settings.error(f"--set {text}: expected NAME=VALUE, as in --set {_example_of(settings)}")
        if name in without:
            raise settings.error(f"--set {text}: {name} is not set by a name here; see --help")
        found[name] = value.strip()
    return found


def _example_of(settings: type[Settings]) -> str:
    name, field = next((name, field) for name, field in settings.scalar_fields().items() if not field.is_required())
    return f"{name}={text_of(field.default)}"


def merge_settings(settings: type[Settings], file: Path | None, *, flags: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of a YAML file, if any, then of the flags, under present names.

    Raises:
        PLSCError: the settings' own error, with a line for each wrong name or value in the file and in the flags.
    """
    values, problems = settings.examine_file(file) if file else ({}, [])
    problems += [problem.text for problem in settings.find_problems(flags, label=flag_of)]
    if settings is Config:
        problems += _check_backbone(values, f"{file}: ") + _check_backbone(flags, "")
    if problems:
        raise settings.error("\n".join(problems))
    values = settings.present_names(values)
    for name, value in settings.present_names(flags).items():
        values.pop(name, None)  # so that a flag also follows the file's settings in order
        values[name] = value
    return values


def _check_backbone(values: Mapping[str, Any], where: str) -> list[str]:
    """What is wrong with the name of a backbone, which `Config` takes as it is: it lies below the registry."""
    try:
        if "model_name" in values:
            with held_back():  # to look one up imports Paddle
                find_backbone(values["model_name"])
    except ConfigError as error:
        return [f"{where}{error}"]
    return []


def make_entry(values: dict[str, Any]) -> Entry:
    """An `Entry` with settings assigned in their order.

    Raises:
        ConfigError: an unknown setting or a wrong value.
    """
    entry = Entry()
    # Each of the two un-sets the other, so that a flag overrides the one in the file.
    setters: dict[str, Callable[[Any], None]] = {
        "train_epochs": entry.set_train_epochs,
        "train_steps": entry.set_train_steps,
        "warmup_epochs": entry.set_warmup_epochs,
        "warmup_steps": entry.set_warmup_steps,
    }
    for name, value in values.items():
        if name in setters and value is not None:
            setters[name](value)
        else:
            setattr(entry, name, value)
    return entry


def _flags(settings: type[Settings], without: Collection[str], hidden: Collection[str]) -> list[inspect.Parameter]:
    flags = [
        _flag(name, field, None if heading in hidden else heading)
        for heading, fields in settings.grouped_fields().items()
        for name, field in fields.items()
        # A dict of anything but numbers belongs in the file.
        if name not in without and (plain_type(field.annotation) is not dict or takes_pairs(field.annotation))
    ]
    made = {flag.name for flag in flags}
    fields = settings.model_fields
    return flags + [_flag(old, fields[new], None) for old, new in settings.renamed.items() if new in made]


def _flag(name: str, field: FieldInfo, heading: str | None) -> inspect.Parameter:
    """An option for one setting, hidden where it has no heading."""
    is_switch, flag = plain_type(field.annotation) is bool, flag_of(name)
    option = typer.Option(
        f"{flag}/{flag_of(f'no_{name}')}" if is_switch else flag,
        show_default=False,
        help=field.description if field.is_required() else describe_default(field),
        rich_help_panel=heading,
        metavar=None if is_switch else accepted_values(field.annotation),
        hidden=heading is None,
    )
    return _keyword(name, Annotated[(bool if is_switch else str) | None, option])


def describe_default(field: FieldInfo) -> str:
    """The description of a field, and its default unless that says nothing."""
    default = "" if field.default in (None, "", {}) else f" Default: {text_of(field.default)}."
    return f"{field.description}{default}"


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

"""Commands that are imported when they are called: the list of all in `plsc --help` needs none of them.

To import a command takes as long as what it works with: settings, NumPy, OpenCV, a server.
"""

from __future__ import annotations

import importlib
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Place(NamedTuple):
    """Where a command is, and what the list of commands shows of it.

    Attributes:
        heading: in the list.
        target: 'module:name' of the function, or of the Typer app of a group of commands.
        help: the first sentence of its own help.
        epilog: an example; a group has none.
        cls: 'module:name' of the class of the command.
        settings: of its context.
    """

    heading: str
    target: str
    help: str
    epilog: str = ""
    cls: str = "plsc.cli.command:Command"
    settings: dict[str, Any] = {}


class LazyCommands(MutableMapping[str, Any]):
    """The commands by name. Each is imported when it is read; names, and how many there are, need no import.

    Args:
        places: by name, in the order of the list.
    """

    def __init__(self, places: dict[str, Place]) -> None:
        self._places, self._made = places, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _load(name, self._places[name])
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._places, **self._made})

    def __len__(self) -> int:
        return len({**self._places, **self._made})

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._made

    def items(self) -> ItemsView[str, Any]:
        return ItemsView(self)

    def values(self) -> ValuesView[Any]:
        return ValuesView(self)


class LazyGroup(TyperGroup):
    """A group whose commands are those of `places`, a class attribute; it imports the one that is called."""

    places: dict[str, Place] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = LazyCommands(self.places)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """What the help and a shell's completion show of a command; `resolve_command` has the command itself."""
        place = self.places.get(cmd_name)
        if place is None:
            return None
        return TyperCommand(cmd_name, help=place.help, rich_help_panel=place.heading)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else self.commands[name], rest


def _load(name: str, place: Place) -> Any:
    target = _imported(place.target)
    if isinstance(target, typer.Typer):
        group = typer.main.get_group(target)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    register = alone.command(name, cls=_imported(place.cls), epilog=place.epilog, context_settings=place.settings)
    register(target)
    return typer.main.get_command(alone)


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)

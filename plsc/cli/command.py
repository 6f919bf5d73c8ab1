"""The class of every command of `plsc`: its messages name flags, and an unknown flag leads to the right one."""

from __future__ import annotations

import re
import sys
from typing import Any

import typer
from typer.core import TyperCommand

from plsc.utils.hints import command_line, flag_of
from plsc.utils.logging import lossy
from plsc.utils.names import nearest_name, setting_hint


def tell(what: Any) -> None:
    """Print a line on what a command has written elsewhere. Unlike a result, it may be lost."""
    typer.echo(what, file=lossy(sys.stdout))


class Command(TyperCommand):
    """A command within which messages name its flags instead of Python's setters.

    Example:
        >>> @app.command(cls=Command)
        ... def inspect(source): ...
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Unknown flags are reported before, all at once, each with the flag that is meant."""
        unknown = self._unknown_flags(args)
        if unknown and not ctx.resilient_parsing:
            ctx.fail("\n".join(f"No such option: {flag}{self._hint(flag)}" for flag in unknown))
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message += _near_choice(error.message)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with command_line(self._flags()):
            return super().invoke(ctx)

    def _flags(self, *, hidden: bool = True) -> dict[str, bool]:
        """Every flag of the command, and whether a value follows it."""
        options: list[Any] = [parameter for parameter in self.params if parameter.param_type_name == "option"]
        flags = {"--help": False, "-h": False}
        for option in options:
            if hidden or not option.hidden:
                flags.update(dict.fromkeys([*option.opts, *option.secondary_opts], not option.is_flag))
        return flags

    def _unknown_flags(self, args: list[str]) -> list[str]:
        flags, unknown, rest = self._flags(), [], iter(args)
        for arg in rest:
            if arg == "--":
                break
            flag, assigned, _ = arg.partition("=")
            if flags.get(flag) and not assigned:
                next(rest, None)  # its value
            elif flag.startswith("--") and flag not in flags:
                unknown.append(flag)
        return list(dict.fromkeys(unknown))

    def _hint(self, unknown: str) -> str:
        known = [flag[2:].replace("-", "_") for flag in self._flags(hidden=False) if flag.startswith("--")]
        return setting_hint(unknown[2:].removeprefix("no-"), known, show=flag_of)


def _near_choice(message: str) -> str:
    """' Did you mean 'x'?' behind Typer's "'y' is not one of 'x', 'z'.", or ''."""
    found = re.search(r"'([^']*)' is not one of (.*)", message)
    near = nearest_name(found[1], re.findall("'([^']*)'", found[2])) if found else None
    return f" Did you mean '{near}'?" if near else ""

"""Messages name settings by `plsc.utils.hints`: a reader in Python finds setters, one at a terminal finds flags."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main

from plsc import Config, Entry
from plsc.cli.launch import PADDLE_FLAGS, RARE_FLAGS
from plsc.cli.main import app
from plsc.serving.settings import ServeSettings
from plsc.utils.hints import argument, command_line, flag_of, setter

ROOT = Path(__file__).parents[1] / "plsc"
# Where only one of the two kinds of reader is: the command line, the demo, and methods of Entry and PLSC 0.x.
ONE_READER = {"cli", "demo", "entry.py", "compat", "utils/hints.py"}
FILES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if not {path.relative_to(ROOT).parts[0], str(path.relative_to(ROOT))} & ONE_READER
]
SETTERS = {name for name in vars(Entry) if name.startswith("set_")}


def leaves(group, path=("plsc",)):
    for name, command in group.commands.items():
        inner = (*path, name)
        yield from leaves(command, inner) if hasattr(command, "commands") else [(" ".join(inner), command)]


COMMANDS = {
    path: {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]}
    for path, command in leaves(typer.main.get_command(app))
}
FLAGS = {flag for flags in COMMANDS.values() for flag in flags if flag.startswith("--")}
# Paddle's launcher has these, too, under which the reader's ranks run.
FLAGS -= {f"--{name}" for name in (*PADDLE_FLAGS, *RARE_FLAGS)}


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def texts(tree):
    """The string constants that are no docstrings, with their lines."""
    skipped = set(map(id, docstrings(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "either":  # a text for each reader
            skipped.update(id(part) for part in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_message_spells_out_a_setter_or_a_flag(path):
    for line, text in texts(ast.parse(path.read_text())):
        for name in re.findall(r"\bset_[a-z_0-9]+", text):
            assert name not in SETTERS, f"{path}, line {line}: write {{setter(...)}} in place of {name}"
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            assert flag not in FLAGS, f"{path}, line {line}: write {{setter(...)}} or {{argument(...)}} for {flag}"


def calls(function):
    """(file, line, arguments) of each call of a function of hints; arguments as text, None where they are computed."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == function:
                named = {keyword.arg: keyword.value for keyword in node.keywords}
                default = ast.Constant("plsc data convert")
                values = node.args[0], named.get("of", default)
                yield path, node.lineno, [getattr(value, "value", None) for value in values]


@pytest.mark.parametrize("path, line, arguments", calls("setter"), ids=lambda value: Path(str(value)).name)
def test_a_setting_that_a_message_names_has_a_setter_and_a_flag(path, line, arguments):
    name, _ = arguments
    if name is None:
        assert path.name in ("entry.py", "state.py", "hints.py"), f"{path}, line {line}: name the setting"
        return
    assert name in Config.model_fields, f"{path}, line {line}"
    written = setter(name)
    assert hasattr(Entry, written) or hasattr(Entry(), written.removeprefix("entry."))
    with command_line(COMMANDS["plsc train"]):
        assert setter(name) == (f"{written} in a script" if name in Config.object_fields() else flag_of(name))


@pytest.mark.parametrize("path, line, arguments", calls("argument"), ids=lambda value: Path(str(value)).name)
def test_an_argument_that_a_message_names_is_a_flag_of_its_command(path, line, arguments):
    name, command = arguments
    with command_line(COMMANDS[command]):
        assert argument(name, of=command) in COMMANDS[command], f"{path}, line {line}"


def test_every_setting_of_a_run_is_a_flag_of_the_commands_that_take_settings():
    for name in set(Config.scalar_fields()) - {"amp_lists"}:
        assert all(flag_of(name) in COMMANDS[f"plsc {command}"] for command in ("train", "test", "export")), name
    for name in set(ServeSettings.scalar_fields()) - {"model", "api_key"}:
        assert flag_of(name) in COMMANDS["plsc serve"], name

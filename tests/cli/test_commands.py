"""Commands are imported when they are called, and the list of all shows what each says of itself."""

from __future__ import annotations

import os
import sys

import pytest
import typer
from typer.testing import CliRunner

from plsc.cli.main import Commands, app
from tests._support.ranks import run

LOADED = """
import sys
from plsc.cli.main import main
sys.argv = ["plsc", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print("loaded", [name for name in ("paddle", "cv2", "numpy", "plsc.config") if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments, allowed",
    [
        (["--help"], []),
        (["--version"], []),
        (["trian"], []),
        (["train", "--help"], ["plsc.config"]),
        (["report", "--help"], ["plsc.config", "numpy"]),
    ],
    ids=" ".join,
)
def test_a_help_imports_only_what_it_shows(arguments, allowed):
    _, output = run([sys.executable, "-c", LOADED, *arguments])
    loaded = output.rpartition("loaded ")[2].strip().strip("[]").replace("'", "")
    assert set(filter(None, loaded.split(", "))) <= {*allowed}, output


def test_a_completion_imports_no_command():
    code = f"import os; os.environ.update(_PLSC_COMPLETE='complete_bash', COMP_WORDS='plsc tr', COMP_CWORD='1'){LOADED}"
    _, output = run([sys.executable, "-c", code], check=False)
    assert "train" in output.split() and "loaded []" in output


@pytest.mark.parametrize("name", Commands.places)
def test_the_list_shows_the_first_sentence_of_each_commands_own_help(name):
    place, group = Commands.places[name], typer.main.get_command(app)
    command = group.commands[name]
    assert command.name == name
    text = " ".join((command.help or "").split("\n\n")[0].split())
    assert text.startswith(place.help), text
    assert (command.epilog or "") == place.epilog


def test_a_mistyped_command_names_the_near_one():
    for given, meant in (("trian", "train"), ("exprot", "export"), ("lr_find", "lr-find")):
        result = CliRunner().invoke(app, [given], env={"COLUMNS": "200"})
        assert result.exit_code == 2 and f"No such command '{given}'. Did you mean '{meant}'?" in result.output


def test_a_command_of_a_group_has_the_same_answer():
    result = CliRunner().invoke(app, ["data", "convrt"], env={**os.environ, "COLUMNS": "200"})
    assert result.exit_code == 2 and "Did you mean 'convert'?" in result.output

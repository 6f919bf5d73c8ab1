"""The public surface: `plsc.__all__` is complete, documented, and cheap to import."""

from __future__ import annotations

import ast
import inspect
import sys
import types
from pathlib import Path

import pytest

import plsc
from plsc.utils.settings import Settings
from tests._support.ranks import run

CLASSES = [value for value in (getattr(plsc, name) for name in plsc.__all__) if inspect.isclass(value)]
FUNCTIONS = [value for value in (getattr(plsc, name) for name in plsc.__all__) if inspect.isfunction(value)]
# Signatures of PLSC 0.x, whose scripts may pass every argument by position.
OF_OLD = {"set_loss_type", "set_mixed_precision", "set_hdfs_info"}


def test_all_is_sorted_and_holds_each_name_once():
    assert plsc.__all__ == sorted(set(plsc.__all__))
    assert dir(plsc) == plsc.__all__


def test_nothing_else_of_the_package_is_public():
    own = {
        name
        for name, value in vars(plsc).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", "").startswith("plsc")
    }
    assert own <= set(plsc.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'plsc' has no attribute 'Trainr'"):
        _ = plsc.Trainr


def test_type_checkers_see_the_names_that_are_imported_at_first_use():
    tree = ast.parse(Path(plsc.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == plsc._AT_FIRST_USE


def test_the_import_brings_neither_paddle_nor_numpy_nor_opencv():
    code = "import plsc, sys; print([name for name in ('paddle', 'numpy', 'cv2', 'typer') if name in sys.modules])"
    assert run([sys.executable, "-c", code])[1].strip() == "[]"


MISTAKES = """
from plsc import Config, Entry, create_backbone

entry = Entry()
size: int = entry.emb_dim
entry.set_clas_num(3)
entry.no_such_setting = 3
entry.train_batch_size = "32"
entry.set_logits("stored")
Config(num_clases=3)
create_backbone("ResNet50", 512)
"""


@pytest.mark.slow
def test_a_type_checker_sees_settings_and_setters(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(MISTAKES)
    options = ["--follow-imports=silent", "--no-error-summary", f"--cache-dir={tmp_path}", "script.py"]
    _, output = run([sys.executable, "-m", "mypy", *options], check=False, cwd=tmp_path)
    assert [int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line] == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("value", CLASSES + FUNCTIONS, ids=lambda value: value.__name__)
def test_every_member_is_documented(value):
    assert value.__doc__ and value.__doc__.strip()


@pytest.mark.parametrize(
    "value",
    [value for value in CLASSES if not issubclass(value, plsc.PLSCError)] + [plsc.PLSCError] + FUNCTIONS,
    ids=lambda value: value.__name__,
)
def test_every_class_and_function_has_an_example(value):
    if value is plsc.list_backbones:
        return
    assert ">>> " in value.__doc__, "add an example, with >>>, to its docstring"


@pytest.mark.parametrize("value", CLASSES + FUNCTIONS, ids=lambda value: value.__name__)
def test_arguments_after_the_second_are_keyword_only(value):
    functions = [value]
    if inspect.isclass(value):
        if issubclass(value, (Settings, Exception)):
            return
        functions = [member for name, member in vars(value).items() if not name.startswith("_") or name == "__init__"]
    for function in functions:
        function = getattr(function, "__func__", function)
        if not inspect.isfunction(function) or function.__name__ in OF_OLD or function.__name__ == "build_network":
            continue
        parameters = [
            name for name in inspect.signature(function).parameters.values() if name.name not in ("self", "cls")
        ]
        by_position = [item for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
        assert len(by_position) <= 2, f"{value.__name__}.{function.__name__}{inspect.signature(function)}"

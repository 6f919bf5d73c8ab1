"""Flags derived from settings."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated, Any, ClassVar

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

import plsc
from plsc.cli.main import app as plsc_app
from plsc.cli.settings import make_entry, merge_settings, with_settings
from plsc.cli.training import OF_TRAINING
from plsc.config import Config
from plsc.serving.settings import ServeSettings
from plsc.utils.settings import Settings
from tests._support.ranks import run


def test_unknown_settings_in_a_file_name_the_near_miss(tmp_path):
    (tmp_path / "run.yaml").write_text("train_batchsize: 3\n")
    with pytest.raises(plsc.ConfigError, match=r"run\.yaml: there is no .*; did you mean 'train_batch_size'"):
        merge_settings(Config, tmp_path / "run.yaml", flags={})


def test_all_faults_of_a_file_and_of_the_flags_are_said_at_once(tmp_path):
    (tmp_path / "run.yaml").write_text("batch_size: 3\nlr: -1\nmodel_name: resnet50\n")
    with pytest.raises(plsc.ConfigError) as error:
        merge_settings(
            Config, tmp_path / "run.yaml", flags={"sample_ratio": "3", "train_epochs": "x", "model_name": "ResNet51"}
        )
    assert [line.split("; ")[0].removeprefix(f"{tmp_path}/") for line in str(error.value).splitlines()] == [
        "run.yaml: there is no setting named 'batch_size'",
        "run.yaml: lr: got -1 (int)",
        "--sample-ratio: got '3' (str)",
        "--train-epochs: got 'x' (str)",
        "run.yaml: model_name: got 'resnet50' (str)",
        "model_name: got 'ResNet51' (str)",
    ]


def test_every_setting_is_a_flag():
    _, output = run(
        [
            sys.executable,
            "-c",
            "import os; os.environ['COLUMNS'] = '400'; import sys; sys.argv = "
            "['plsc', 'train', '--help']; from plsc.cli.main import main; main()",
        ]
    )
    missing = [name for name in Config.scalar_fields() if f"--{name.replace('_', '-')}" not in output]
    assert missing == ["amp_lists"]


class Limits(Settings):
    """Settings of a small command."""

    renamed: ClassVar[dict[str, str]] = {"max_size": "max_bytes", "old_switch": "switch"}
    groups: ClassVar[dict[str, str]] = {"max_bytes": "Limits"}

    model: str = Field(description="Folder of the model.")
    max_bytes: int = Field(default=1024, description="Largest request, in bytes.")
    switch: bool = Field(default=True, description="Whether it is on.")
    sizes: tuple[int, int] = Field(default=(1, 2), description="Two sizes.")
    table: dict[str, int] = Field(default={}, description="What only a file can hold.")
    hook: Any = Field(default=None, exclude=True, description="What only Python can hold.")


app = typer.Typer(rich_markup_mode=None)


@app.command()
@with_settings(Limits, without=("model",))
def show(
    settings: dict[str, Any],
    model: Annotated[str, typer.Argument(help="Folder.")],
    times: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Show what was given."""
    typer.echo(json.dumps([settings, model, times]))


def call(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_a_command_receives_what_was_given_and_its_own_parameters():
    assert call("m") == [{}, "m", 1]
    assert call("m", "--max-bytes", 3, "--no-switch", "--times", 2) == [{"max_bytes": "3", "switch": False}, "m", 2]


def test_flags_win_over_the_file_and_follow_it_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("max-size: 5\nsizes: [3, 4]\n")
    settings, *_ = call("m", "--config", tmp_path / "a.yaml", "--max-bytes", 7)
    assert list(settings.items()) == [("sizes", [3, 4]), ("max_bytes", "7")]


def test_old_names_are_hidden_flags():
    assert call("m", "--max-size", 3, "--no-old-switch")[0] == {"max_bytes": "3", "switch": False}
    assert "--max-size" not in CliRunner().invoke(app, ["--help"]).output


def test_the_help_has_values_defaults_and_neither_dicts_nor_objects():
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "--max-bytes INT Largest request, in bytes. Default: 1024." in text
    assert "--sizes INT,INT Two sizes. Default: 1,2." in text
    assert "--table" not in text and "--hook" not in text
    assert "Show what was given." in text


def test_an_unknown_flag_names_the_near_miss():
    result = CliRunner().invoke(app, ["m", "--max-byte", "3"])
    assert result.exit_code == 2 and "--max-bytes" in result.output


@pytest.mark.parametrize(
    "file, flags, expected",
    [
        ("train_epochs: 7", {"train_steps": "3"}, (None, 3)),
        ("train_steps: 7", {"train_epochs": "3"}, (3, None)),
        ("train_epochs: 5\ntrain_steps: 7", {"train_epochs": "3"}, (3, None)),
        ("train_steps: 7", {}, (None, 7)),
    ],
)
def test_a_flag_for_steps_unsets_the_epochs_of_the_file(tmp_path, file, flags, expected):
    (tmp_path / "run.yaml").write_text(file)
    entry = make_entry(merge_settings(Config, tmp_path / "run.yaml", flags=flags))
    assert (entry.train_epochs, entry.train_steps) == expected


def test_a_wrong_backbone_fails_before_the_work():
    with pytest.raises(plsc.ConfigError, match="did you mean 'ResNet50'"):
        make_entry({"model_name": "Resnet50"})


def test_settings_by_name_are_between_the_file_and_the_flags(tmp_path):
    (tmp_path / "a.yaml").write_text("max_bytes: 5\nswitch: false\nsizes: [3, 4]\n")
    given = ["--set", "max-size=6", "--set", "sizes= 1,2", "--set", "sizes=7,8", "--max-bytes", 9]
    settings, *_ = call("m", "--config", tmp_path / "a.yaml", *given)
    assert settings == {"switch": False, "sizes": "7,8", "max_bytes": "9"}


@pytest.mark.parametrize(
    "given, message",
    [
        ("sizes", "--set sizes: expected NAME=VALUE, as in --set max_bytes=1024"),
        ("=3", "--set =3: expected NAME=VALUE"),
        ("max_byte=3", "there is no setting named 'max_byte'; did you mean 'max_bytes'?"),
        ("max_bytes=x", "max-bytes: got 'x'"),
        ("model=x", "--set model=x: model is not set by a name here"),
    ],
)
def test_mistakes_in_settings_by_name(given, message):
    result = CliRunner().invoke(app, ["m", "--set", given])
    assert isinstance(result.exception, plsc.ConfigError) and message in str(result.exception)


def dumped(*arguments):
    result = CliRunner().invoke(plsc_app, ["train", *map(str, arguments), "--dump-config"])
    assert result.exit_code == 0, result.output
    return result.output


def test_settings_that_are_printed_are_read_again(tmp_path):
    given = {
        **{"lr": "1e-5", "dataset_dir": "'./a: b #c'", "val_targets": "'2024'", "train_steps": 50, "flip": "no"},
        **{"pixel_mean": "[1, 2.5, 3]", "loss_options": "{m: 0.4}", "amp_lists": "{white: [matmul]}"},
    }
    (tmp_path / "run.yaml").write_text("".join(f"{name}: {value}\n" for name, value in given.items()))
    text = dumped("--config", tmp_path / "run.yaml")
    (tmp_path / "again.yaml").write_text(text)
    assert dumped("--config", tmp_path / "again.yaml") == text
    read = Config.read_file(tmp_path / "again.yaml")
    assert read == {**Config.read_file(tmp_path / "run.yaml"), "train_epochs": None}
    # What was not given remains so, and is shown with its default.
    (tmp_path / "all.yaml").write_text(re.sub(r"(?m)^# (?=\w+: )", "", text))
    assert set(Config.read_file(tmp_path / "all.yaml")) == set(Config.scalar_fields())


def test_tests_and_exports_show_no_settings_of_training_and_accept_them():
    for command in ("test", "export"):
        text = CliRunner().invoke(plsc_app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert "--dataset-dir" in text and "--lr-steps" not in text and "--augment-crop" not in text
        result = CliRunner().invoke(plsc_app, [command, "--lr", "x"])
        assert "--lr: got 'x'" in str(result.exception)


@pytest.mark.parametrize("command", ["train", "test", "export", "serve"])
@pytest.mark.parametrize("columns", ["80", "120"])
def test_no_terminal_is_too_narrow_for_the_names_of_flags(command, columns):
    text = CliRunner().invoke(plsc_app, [command, "--help"], env={"COLUMNS": columns}).output
    settings = ServeSettings if command == "serve" else Config
    hidden = {"model", "api_key", "amp_lists"}
    for heading, fields in Config.grouped_fields().items() if command in ("test", "export") else ():
        hidden |= set(fields) if heading in OF_TRAINING else set()
    flags = [f"--{name.replace('_', '-')}" for name in settings.scalar_fields() if name not in hidden]
    assert "…" not in text
    assert all(f"{flag} " in text for flag in flags)
    assert max(map(len, text.splitlines())) <= int(columns)

"""What every command does: its messages name flags, and an unknown flag leads to the right one."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from plsc.cli.command import Command
from plsc.cli.main import app
from plsc.utils.hints import setter


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


@pytest.mark.parametrize(
    "command, flag, meant",
    [
        (["train"], "--batch-size", "--train-batch-size"),
        (["train"], "--train_batch_size", "--train-batch-size"),
        (["train"], "--learning-rate", "--lr"),
        (["train"], "--epochs", "--train-epochs"),
        (["train"], "--output", "--model-save-dir"),
        (["train"], "--restore", "--checkpoint-dir"),
        (["train"], "--no-eval", "--with-test"),
        (["train"], "--model", "--model-name"),
        (["train"], "--num-clases", "--num-classes"),
        (["export"], "--output", "--to"),
        (["export", "--dataset-dir", "--batch-size"], "--workers", "--num-workers"),
        (["serve", "m"], "--batch-size", "--max-batch"),
        (["serve", "m"], "--ip", "--host"),
        (["data", "convert", "a", "b"], "--format", "--to"),
    ],
)
def test_an_unknown_flag_leads_to_the_right_one(command, flag, meant):
    for form in ([flag, "4"], [f"{flag}=4"]):
        result = call(*command, *form)
        assert result.exit_code == 2
        assert f"No such option: {flag}; did you mean {meant}?" in result.output


def test_what_is_no_setting_is_said_to_be_elsewhere():
    output = call("train", "--beta1", "0.9", "--gpus", "0", "--zzz").output
    assert "No such option: --beta1; a script gives an optimizer that has it" in output
    assert "No such option: --gpus; devices and ranks are chosen by python -m paddle.distributed.launch" in output
    assert "No such option: --zzz " in output and output.count("No such option") == 3


def commands(group, path=()):
    for name, command in group.commands.items():
        inner = (*path, name)
        yield from commands(command, inner) if hasattr(command, "commands") else [(inner, command)]


@pytest.mark.parametrize("path, command", commands(typer.main.get_command(app)), ids=lambda value: str(value)[:40])
def test_every_command_names_its_flags(path, command):
    assert isinstance(command, Command), f"{' '.join(path)}: app.command(cls=Command)"


def test_a_message_of_a_run_names_flags(tmp_path):
    result = call("test", "--model-save-dir", tmp_path, "--dataset-dir", tmp_path)
    assert "or name one with --val-targets" in str(result.exception)
    result = call("train", "--num-classes", 0, "--lr", "x")
    assert str(result.exception).startswith("--num-classes: got '0'") and "\n--lr: got 'x'" in str(result.exception)


def test_messages_name_flags_only_while_a_command_runs():
    group = typer.Typer()

    @group.command(cls=Command)
    def show(lr: float = 0.1) -> None:
        typer.echo(f"{setter('lr', 3)}, {setter('seed', 3)}")

    assert CliRunner().invoke(group, []).output.strip() == "--lr 3, --seed 3 of plsc train"
    assert setter("lr", 3) == "set_lr(3)"


@pytest.mark.parametrize(
    "arguments, meant",
    [
        (["demo", "--size", "smal"], "Did you mean 'small'?"),
        (["train", "--logits", "stor"], "did you mean 'store'? expected 'auto'"),
        (["train", "--set", "bad_images=skp"], "did you mean 'skip'? expected 'stop' or 'skip'"),
        (["train", "--loss-type", "arcfce"], "did you mean 'arcface'?"),
        (["train", "--set", "optimzer=sgd"], "did you mean 'optimizer'?"),
    ],
    ids=str,
)
def test_a_value_near_an_accepted_one_leads_to_it(arguments, meant):
    result = call(*arguments)
    assert result.exit_code and meant in " ".join(result.output.split()) + str(result.exception)


def test_a_value_near_none_has_no_hint():
    assert "id you mean" not in call("demo", "--size", "zzz").output

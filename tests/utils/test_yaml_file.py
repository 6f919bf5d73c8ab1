"""Files of settings: what is read as what, and where a fault is."""

from __future__ import annotations

import json

import pytest

from plsc import Config, ConfigError
from plsc.utils.yaml_file import read_entries


def read(path, *, texts=()):
    return read_entries(path, ConfigError, is_text=lambda name: name in texts)


@pytest.mark.parametrize(
    "written, value",
    [
        ("1e-1", 0.1),
        ("1E3", 1000.0),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("1_000", 1000),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("on", True),
        ("No", False),
        ("true", True),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("[3, 1e1]", [3, 10.0]),
        ("3,32,32", "3,32,32"),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values_are_what_they_look_like(tmp_path, written, value):
    (tmp_path / "a.yaml").write_text(f"a-b: {written}\n")
    found = read(tmp_path / "a.yaml").values["a_b"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("written", ["no", "2024-01-01", "007", "1e3", "0x1"])
def test_where_text_is_expected_the_value_is_the_text(tmp_path, written):
    (tmp_path / "a.yaml").write_text(f"name: {written}\nother: {written}\n")
    values = read(tmp_path / "a.yaml", texts=["name"]).values
    assert values["name"] == written and (values["other"] != written or written == "2024-01-01")
    (tmp_path / "run.yaml").write_text(f"dataset_dir: {written}\nval-targets: {written}\n")
    config = Config.from_file(tmp_path / "run.yaml")
    assert (config.dataset_dir, config.val_targets) == (written, written)


def test_an_empty_value_is_not_the_text_null(tmp_path):
    (tmp_path / "run.yaml").write_text("val_targets:\nloss_type: null\n")
    with pytest.raises(ConfigError, match=r"run.yaml: loss_type: got None .*\(line 2\)$"):
        Config.read_file(tmp_path / "run.yaml")


def test_a_setting_may_be_merged_from_an_anchor_and_given_again(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &base {lr: 1, seed: 2}\n<<: *base\nlr: 3\n")
    entries = read(tmp_path / "a.yaml")
    assert entries.values == {"base": {"lr": 1, "seed": 2}, "lr": 3, "seed": 2} and not entries.problems


@pytest.mark.parametrize(
    "content, words",
    [
        (b"lr: 0.1\n\tseed: 3\n", "a tab; YAML takes only spaces there (line 2, column 1)"),
        (b"lr:0.1\n", "found str 'lr:0.1'; a setting is 'name: value', with a space after the colon"),
        (b"lr = 0.1\n", "a setting is 'name: value', with a space after the colon"),
        (b"lr:0.1\nseed: 3\n", "a line before it that has no colon with a space after it"),
        (b"dataset_dir: C:\\x: y\n", "text with a colon in quotes (line 1, column 18)"),
        (b"- lr: 0.1\n", "found list; write the settings without leading dashes"),
        (b"lr: 1\n---\nlr: 2\n", "a line of --- begins a second document; expected one (line 2"),
        (b"lr: !!python/object:os.system 1", "not YAML: could not determine a constructor"),
        (b"lr: !!int x\n", "'x' is no integer (line 1"),
        (b'lr: "0.1\n', "found unexpected end of stream"),
        (b"lr: *a\n", "undefined alias 'a' (line 1"),
        (b"dataset_dir: @x\n", "character '@' that cannot start any token (line 1, column 14)"),
        (b"a: " + b"[" * 5000, "not YAML"),
        (b"lr: 1\na: b\x00c\n", "not YAML"),
        (b"lr: 1\ndataset_dir: caf\xe9\n", "it is not UTF-8, found the byte 0xe9 (line 2); save it as UTF-8"),
        ("lr: 1\n".encode("utf-16"), "save it as UTF-8 instead of UTF-16"),
    ],
)
def test_what_is_no_file_of_settings_is_said_with_its_place(tmp_path, content, words):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read(tmp_path / "a.yaml")
    assert words in str(error.value) and str(error.value).startswith(f"{tmp_path / 'a.yaml'}: ")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbflr: 1\r\nseed: 2\r\n")
    assert read(tmp_path / "a.yaml").values == {"lr": 1, "seed": 2}


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n"])
def test_a_file_without_a_setting_is_said(tmp_path, caplog, content):
    (tmp_path / "a.yaml").write_text(content)
    assert read(tmp_path / "a.yaml").values == {}
    assert f"{tmp_path / 'a.yaml'}: holds no setting" in caplog.text


def test_a_checkpoint_in_place_of_a_file(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="it is a folder"):
        read(tmp_path / "folder.yaml")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "plsc-checkpoint"}))
    for path in (tmp_path, tmp_path / "manifest.json"):
        with pytest.raises(ConfigError, match="it is a .*checkpoint; set_checkpoint_dir"):
            read(path)


def test_all_faults_of_a_file_are_said_in_the_order_of_its_lines(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "batch_size: 4\nlearning-rate: 1\ntrain_batch_size: 0\nlr: 1e-1\nlr: 2\nmodel: ResNet50\noptimizer: adan\n"
        "train:\n  epochs: 3\nloss_type: arcfase\n[1, 2]: 3\nbeta1: 1\nimage_shape: 3,32\n"
    )
    with pytest.raises(ConfigError) as error:
        Config.read_file(tmp_path / "run.yaml")
    expected = [
        "there is no setting named 'batch_size'; did you mean 'train_batch_size'? (line 1)",
        "there is no setting named 'learning_rate'; did you mean 'lr'? (line 2)",
        "train_batch_size: got 0 (int); expected greater than or equal to 1 (line 3)",
        "lr: given before in line 4; leave one out (line 5)",
        "'model' is a Python object; set it in a script; did you mean 'model_name'? (line 6)",
        "optimizer: got 'adan' (str); did you mean 'adamw'? accepted: momentum, sgd, adamw, lars, lion, or a "
        "class, as 'paddle.optimizer:Adam' (line 7)",
        "there is no setting named 'train'; sections are not known, write settings without indentation (line 8)",
        "loss_type: got 'arcfase' (str); did you mean 'arcface'?",
        "expected 'setting: value', found a sequence in place of the name (line 11)",
        "there is no setting named 'beta1'; a script gives an optimizer",
        "image_shape: got ['3', '32'] (list); expected three numbers, as 3,112,112 (line 13)",
    ]
    lines = str(error.value).splitlines()
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected):
        assert line.startswith(f"{tmp_path / 'run.yaml'}: {words}"), line

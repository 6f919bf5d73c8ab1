"""Commands whose standard error or standard output cannot be written, or has lost its reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests._support.images import CLASSES, SIDE

# Several commands in one process, since each would import Paddle. An error that sticks to a stream shows in a later
# command.
PROGRAM = """
import json, sys
from plsc.cli.main import main
statuses = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
        statuses.append(0)
    except SystemExit as error:
        statuses.append(error.code)
with open("statuses", "w") as file:
    json.dump(statuses, file)
"""


@pytest.fixture
def streams():
    """Files and pipes that cannot be written, by name."""
    reader, gone = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    yield {"full": full, "gone": gone}
    os.close(full)
    os.close(gone)


def run(commands, folder, **options):
    """The exit statuses of the commands and of the process."""
    # With two threads, Paddle prints a warning when it is imported.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"}
    environment.pop("PYTHONUNBUFFERED", None)
    commands = [list(map(str, command)) for command in commands]
    options.setdefault("stderr", subprocess.PIPE)
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(commands)], cwd=folder, env=environment, **options)
    return [*json.loads((folder / "statuses").read_text()), done.returncode], done


def commands_of(data_dir):
    settings = ["--dataset-dir", data_dir, "--image-shape", f"3,{SIDE},{SIDE}", "--model-name", "ResNetTiny"]
    settings += ["--emb-dim", 16, "--train-batch-size", 10, "--num-classes", CLASSES, "--train-epochs", 1]
    image = data_dir / "images" / "00000000.png"
    return {
        "train": ["train", *settings, "--num-workers", 1, "--train-steps", 2],
        "test": ["test", "--model-save-dir", "output", "--dataset-dir", data_dir],
        "export": ["export", "--model-save-dir", "output", "--to", "model"],
        "embed": ["embed", "model", image, "--output", "e.npy"],
        "build": ["gallery", "build", "model", "gallery", image, "--name", "ann"],
        "search": ["gallery", "search", "model", "gallery", image],
        "convert": ["data", "convert", data_dir, "new", "--to", "csv"],
        "inspect": ["data", "inspect", data_dir],
        "error": ["data", "inspect", "nowhere"],
        "usage": ["data", "inspect", "--nowhere"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "gone"])
def test_a_log_that_cannot_be_written_changes_nothing(name, streams, data_dir, tmp_path):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    statuses, done = run(
        commands_of(data_dir).values(), tmp_path, stderr=streams[name], stdout=subprocess.PIPE, text=True
    )
    assert statuses == [0] * 8 + [1, 2, 0]
    assert '"lfw/pairs": 20' in done.stdout and '"name": "ann"' in done.stdout
    assert {"output", "model", "e.npy", "gallery", "new"} <= {path.name for path in Path(tmp_path).iterdir()}


def test_a_result_that_cannot_be_written_is_an_error_and_a_line_on_what_was_done_is_not(streams, data_dir, tmp_path):
    commands = commands_of(data_dir)
    statuses, done = run([commands["convert"], commands["inspect"]], tmp_path, stdout=streams["full"], text=True)
    assert statuses == [0, 1, 0] and (tmp_path / "new").is_dir()
    message = "plsc: standard output cannot be written: No space left on device"
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_script_trains_with_a_log_that_cannot_be_written(streams, entry, tmp_path):
    script = (
        f"import sys; import plsc; e = plsc.Entry(); e.set_dataset_dir({str(entry.dataset_dir)!r}); "
        f"e.set_class_num({CLASSES}); "
        f"e.set_image_shape((3, {SIDE}, {SIDE})); e.set_model_name('ResNetTiny'); e.set_emb_size(16); "
        f"e.set_train_batch_size(10); e.set_train_epochs(1); e.set_num_workers(1); "
        f"e.set_model_save_dir(sys.argv[1]); e.train()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONUNBUFFERED", None)
    for name, descriptor in streams.items():
        done = subprocess.run([sys.executable, "-c", script, name], cwd=tmp_path, env=environment, stderr=descriptor)
        assert done.returncode == 0

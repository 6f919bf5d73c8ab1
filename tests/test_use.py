"""After training: schedule, export, prediction, the command line, readers, and the introduction's script."""

from __future__ import annotations

import functools
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest

import plsc
from plsc import Entry
from plsc.config import Config
from plsc.distributed.topology import devices_asked_of_launcher
from plsc.engine.optimizer import step_schedule
from plsc.utils import jpeg_reader
from tests._support.images import CLASSES, make_images
from tests._support.ranks import launch, run


def test_rate_scales_with_the_global_batch_and_decays():
    rate = step_schedule(Config(lr_steps=(10, 20)), 2048, 5)
    assert [rate(step) for step in (0, 9, 10, 20)] == pytest.approx([0.2, 0.2, 0.02, 0.002])


@pytest.mark.parametrize("global_batch, start", [(2048, 0.1), (256, 0.0)])
def test_warm_up_rises_to_the_peak_and_never_falls(global_batch, start):
    rate = step_schedule(Config(warmup_epochs=2), global_batch, 5)
    rates, peak = [rate(step) for step in range(12)], 0.1 * global_batch / 1024
    assert np.all(np.diff(rates) >= 0)
    assert rates[0] == pytest.approx(start + (peak - start) / 10)
    assert rates[9:] == pytest.approx([peak] * 3)


def test_embeddings_of_network_and_export_agree(entry, data_dir, tmp_path):
    entry.train()
    files = [data_dir / f"images/{index:08d}.png" for index in range(7)]
    predicted = entry.predict(files, save_to=tmp_path / "e.npy")
    exported = plsc.load_inference_model(entry.convert_for_prediction()).embed(files, batch_size=3)
    assert exported.shape == (7, 16)
    assert np.abs(exported - predicted).max() < 1e-5
    assert np.linalg.norm(predicted, axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    assert np.array_equal(np.load(tmp_path / "e.npy"), predicted)
    # Encoded bytes and pixels say the same; the folder above is found too.
    again = plsc.load_inference_model(entry.model_save_dir).embed(files[0].read_bytes())
    assert np.abs(again - exported[:1]).max() < 1e-5


def test_export_replaces_an_earlier_export(entry):
    entry.train()
    folder = entry.convert_for_prediction()
    assert entry.convert_for_prediction() == folder
    assert plsc.load_inference_model(folder).emb_dim == 16


def test_predict_reader_in_its_forms(entry):
    entry.train()
    images, _ = make_images()
    expected = entry.predict(list(images[:4]))
    for reader in (
        lambda: iter(images[:4]),
        lambda: ((image,) for image in images[:4]),
        lambda: iter([[(image, 0) for image in images[:4]]]),
    ):
        entry.predict_reader = reader
        assert np.array_equal(entry.predict(), expected)


def test_the_newest_checkpoints_are_kept(entry, tmp_path):
    entry.set_train_epochs(4)
    entry.set_max_last_checkpoint_num(2)
    entry.train()
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["2", "3"]


def test_resume_goes_on_after_the_last_epoch(entry, tmp_path):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(3)
    entry.train()
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["0", "1", "2"]


def test_another_optimizer(entry):
    entry.set_optimizer(functools.partial(paddle.optimizer.AdamW, weight_decay=0.05))
    entry.set_lr(lambda step: 1e-3)
    assert entry.train()["lr"] == 1e-3


def test_mixed_precision_says_that_it_has_no_effect_on_cpu(entry, caplog):
    entry.set_mixed_precision(use_fp16=True, init_loss_scaling=128.0)
    entry.train()
    assert "set_mixed_precision has no effect on CPU" in caplog.text


def test_class_folders_are_read(entry, tmp_path, data_dir):
    root = tmp_path / "folders"
    for line in (data_dir / "label.txt").read_text().splitlines():
        name, label = line.split()
        (root / f"person {label}").mkdir(parents=True, exist_ok=True)
        (data_dir / name).rename(root / f"person {label}" / name.split("/")[1])
    entry.set_dataset_dir(root)
    entry.set_with_test(False)
    entry.set_calc_acc(True)
    assert {"acc1", "acc5"} <= entry.train().keys()


def test_distfc_attributes_set_weight_and_bias(entry):
    entry.set_loss_type("dist_softmax")
    constant = paddle.nn.initializer.Constant
    entry.set_distfc_attr(paddle.ParamAttr(initializer=constant(0.5)), paddle.ParamAttr(initializer=constant(2.0)))
    entry.set_optimizer(lambda learning_rate, parameters: paddle.optimizer.SGD(0.0, parameters))
    entry.set_lr(lambda step: 0.0)
    entry.train()
    saved = plsc.engine.checkpoint.Checkpoint(entry.model_save_dir)
    assert np.unique(saved.read("head.weight")) == 0.5
    assert np.unique(saved.read("head.bias")) == 2.0


@pytest.mark.parametrize(
    "command, asked",
    [
        ("python -m paddle.distributed.launch --selected_gpus=0,1 train.py", ("--selected_gpus=0,1", 2)),
        ("python -m paddle.distributed.launch --gpus 0,1,2 train.py", ("--gpus 0,1,2", 3)),
        ("python -m paddle.distributed.launch --nproc_per_node 2 train.py", None),
        ("python train.py --gpus 0,1", None),
    ],
)
def test_a_launcher_that_was_asked_for_devices_is_recognized(command, asked):
    assert devices_asked_of_launcher(command.split(" ")) == asked


def test_two_machines_train_as_one(tmp_path, data_dir):
    """Two launchers on loopback, one rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"
    script = tmp_path / "train.py"
    script.write_text(
        INTRODUCTION.format(
            classes=CLASSES,
            extra=f"""{SMALL.format(batch=5)}
    ins.set_dataset_dir({str(data_dir)!r}); ins.set_model_save_dir("{tmp_path}/output")""",
        )
    )

    def machine(rank):
        nodes = ["--master", master, "--nnodes", 2, "--rank", rank, "--nproc_per_node", 1]
        return run(
            [sys.executable, "-m", "paddle.distributed.launch", *nodes, "--log_dir", tmp_path / f"log{rank}", script],
            cwd=tmp_path,
        )

    with ThreadPoolExecutor(2) as pool:
        outputs = [output for _, output in pool.map(machine, range(2))]
    assert sum("lfw: accuracy" in output for output in outputs) == 1
    names = {path.name for path in (tmp_path / "output" / "0").iterdir()}
    assert {"classes-000000000.safetensors", "classes-000000003.safetensors"} <= names


def test_without_paddle_the_first_use_says_what_to_install():
    code = "import sys; sys.modules['paddle'] = None; import plsc; plsc.Entry().train()"
    status, output = run([sys.executable, "-c", code], check=False)
    assert status != 0
    assert "PLSC needs paddle, which is not installed: pip install paddlepaddle (or paddlepaddle-gpu" in output


# Scripts as users wrote them

INTRODUCTION = """
from plsc import Entry

if __name__ == "__main__":
    ins = Entry()
    ins.set_class_num({classes})
    {extra}
    ins.train()
"""

SMALL = """ins.set_image_shape((3, 16, 16)); ins.set_model_name("ResNetTiny"); ins.set_emb_size(16)
    ins.set_train_batch_size({batch}); ins.set_train_epochs(1)"""

READER = """import paddle
    from plsc.utils import jpeg_reader
    jpeg_reader._IMAGE_SHAPE = (3, 16, 16)
    ins.train_reader = paddle.batch(jpeg_reader.arc_train("./train_data", class_dim={classes}), {batch})"""


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("reader", ["", READER])
def test_the_introductions_script_runs_on_a_folder(ranks, reader, data_dir, tmp_path):
    data_dir.rename(tmp_path / "train_data")
    batch = 10 // ranks
    extra = SMALL.format(batch=batch) + "\n    " + reader.format(classes=CLASSES, batch=batch)
    script = tmp_path / "train.py"
    script.write_text(INTRODUCTION.format(classes=CLASSES, extra=extra))
    command = [sys.executable, str(script)]
    if ranks > 1:
        command = [
            sys.executable,
            "-m",
            "paddle.distributed.launch",
            "--nproc_per_node",
            ranks,
            "--log_dir",
            "log",
            "train.py",
        ]
    _, output = run(command, cwd=tmp_path)
    assert "lfw: accuracy" in output
    assert (tmp_path / "output" / "0" / "manifest.json").is_file()


def test_readers_of_unequal_length_end_together_and_say_so(data_dir, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        INTRODUCTION.format(
            classes=CLASSES,
            extra=f"""{SMALL.format(batch=5)}
    import os, numpy as np
    ins.set_with_test(False); ins.set_model_save_dir("{tmp_path}/output"); ins.set_train_epochs(2)
    image, count = np.zeros((3, 16, 16), np.float32), 3 + int(os.environ["PADDLE_TRAINER_ID"])
    ins.train_reader = lambda: iter([[(image, 0)] * 5] * count)""",
        )
    )
    _, output = launch(2, script, log_dir=tmp_path / "log")
    assert "train_reader of rank 1 had 5 images more than another rank's" in output
    assert (tmp_path / "output" / "1" / "manifest.json").is_file()


def test_old_readers_yield_normalized_images(data_dir, monkeypatch):
    monkeypatch.setattr(jpeg_reader, "_IMAGE_SHAPE", (3, 16, 16))
    samples = list(jpeg_reader.arc_train(str(data_dir), CLASSES)())
    assert len(samples) == 30
    assert samples[0][0].shape == (3, 16, 16) and -1 <= samples[0][0].min() < samples[0][0].max() <= 1
    sets = jpeg_reader.test(str(data_dir), "lfw")()
    entry = Entry()
    entry.test_reader = lambda: sets
    assert [pairs.name for pairs in sets] == ["lfw"]

"""What a user's mistake is told, word for word where it matters."""

from __future__ import annotations

import os
import pickle

import numpy as np
import paddle
import pytest

from plsc import CheckpointError, ConfigError, DataError, ExportError, ServingError, TrainingError, load_inference_model
from plsc.models.base_model import BaseModel
from tests._support.images import make_images


def test_missing_data_folder(entry):
    entry.set_dataset_dir("/no/such/folder")
    with pytest.raises(DataError, match="'/no/such/folder' does not exist; expected .*label.txt.*docs/data.md"):
        entry.train()


def test_label_out_of_range_names_file_and_line(entry, data_dir):
    with open(data_dir / "label.txt", "a") as file:
        file.write("images/00000000.png 40\n")
    with pytest.raises(DataError, match=r"label\.txt, line 31.*label 40 is out of range, expected 0 to 5"):
        entry.train()


@pytest.mark.parametrize("line", ["images/a.jpg", "images/a.jpg x", "images/a.jpg -1", "7"])
def test_malformed_line_names_file_and_line(entry, data_dir, line):
    lines = (data_dir / "label.txt").read_text().splitlines()
    lines.insert(2, line)
    (data_dir / "label.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"label\.txt, line 3: .*expected"):
        entry.train()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_stops_by_default(entry, data_dir, workers):
    (data_dir / "images/00000007.png").write_bytes(b"not an image")
    entry.set_num_workers(workers)
    with pytest.raises(DataError, match=r"00000007\.png.*line 8.*no image known to OpenCV.*set_bad_images\('skip'\)"):
        entry.train()


def test_unreadable_image_is_skipped_and_counted_when_asked(entry, data_dir, caplog):
    (data_dir / "images/00000007.png").write_bytes(b"not an image")
    (data_dir / "images/00000009.png").unlink()
    entry.set_bad_images("skip")
    entry.train()
    assert "skipped an unreadable image: images/00000007.png" in caplog.text
    assert "skipped an unreadable image: images/00000009.png" in caplog.text
    assert "2 unreadable images skipped so far" in caplog.text


def test_missing_verification_set_is_named(entry, data_dir):
    entry.set_val_targets("lfw,cfp_fp")
    with pytest.raises(DataError, match=r"'cfp_fp' of val_targets: .*cfp_fp\.bin does not exist"):
        entry.train()


def test_the_default_verification_set_may_be_missing_but_not_silently(entry, data_dir, caplog):
    (data_dir / "lfw.bin").unlink()
    entry.train()
    assert "no verification" in caplog.text and "lfw.bin" in caplog.text


def test_a_pickle_that_imports_os_system_is_refused_and_runs_nothing(entry, data_dir, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (data_dir / "lfw.bin").write_bytes(pickle.dumps(([Evil(), Evil()], [True])))
    with pytest.raises(DataError, match=r"lfw\.bin.*system"):
        entry.train()
    assert not (tmp_path / "ran").exists()


def test_checkpoint_of_another_embedding_size_or_class_number(entry):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    entry.set_class_num(7)
    with pytest.raises(CheckpointError, match=r"class number is 6, this run's is 7; set_class_num\(6\)"):
        entry.train()
    entry.set_class_num(6)
    entry.set_emb_size(8)
    with pytest.raises(CheckpointError, match=r"embedding size is 16, this run's is 8; set_emb_size\(16\)"):
        entry.train()


def test_checkpoint_of_another_loss_or_network(entry):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    entry.set_loss_type("dist_softmax")
    with pytest.raises(CheckpointError, match=r"trained with loss_type 'dist_arcface'.*no head bias"):
        entry.train()
    entry.set_loss_type("dist_arcface")
    entry.set_model_name("ResNet50")
    with pytest.raises(CheckpointError, match=r"its backbone \(ResNetTiny\) differs"):
        entry.train()


def test_missing_checkpoint(entry, tmp_path):
    entry.set_checkpoint_dir(tmp_path / "none")
    with pytest.raises(CheckpointError, match="does not exist; expected a folder with manifest.json"):
        entry.train()


def test_training_anew_never_mixes_with_older_checkpoints(entry):
    entry.train()
    with pytest.raises(CheckpointError, match=r"output/0 is a checkpoint of later training.*set_checkpoint_dir"):
        entry.train()


class Blind(BaseModel):
    """Its embeddings are not numbers in the third training step."""

    def __init__(self):
        super().__init__(16)
        self.fc = paddle.nn.Linear(3 * 16 * 16, 16)
        self.calls = 0

    def build_network(self, input, label, is_train=True):
        self.calls += is_train
        return self.fc(input.flatten(1)) * (float("nan") if is_train and self.calls == 3 else 1.0)


def test_a_loss_that_is_not_finite_says_where(entry):
    entry.set_model(Blind())
    with pytest.raises(TrainingError, match=r"the loss is nan at epoch 0, step 3 .*set_on_nonfinite\('skip'\)"):
        entry.train()
    assert not os.path.exists(os.path.join(entry.model_save_dir, "0"))


def test_a_loss_that_is_not_finite_is_skipped_when_asked(entry, caplog):
    entry.set_model(Blind())
    entry.set_on_nonfinite("skip")
    entry.set_train_epochs(2)
    assert np.isfinite(entry.train()["loss"])
    assert "step 3 skipped: its loss is nan" in caplog.text


def test_readers_of_the_wrong_form(entry):
    images, labels = make_images()
    entry.train_reader = lambda: iter(zip(images, labels))
    with pytest.raises(DataError, match=r"train_reader, batch 0: expected a list of .*paddle\.batch"):
        entry.train()
    entry.train_reader = lambda: iter(())
    with pytest.raises(TrainingError, match="yielded no batch"):
        entry.train()
    entry.train_reader = lambda: iter([[(np.zeros((3, 16, 16), np.float32), 6)]])
    with pytest.raises(DataError, match="labels run from 6 to 6, expected 0 to 5"):
        entry.train()


def test_optimizers_of_the_wrong_form(entry):
    entry.set_optimizer(lambda learning_rate, parameters: "adam")
    with pytest.raises(ConfigError, match="returned str, expected a paddle.optimizer.Optimizer"):
        entry.train()
    entry.set_optimizer(lambda rate: None)
    with pytest.raises(ConfigError, match="could not be called as factory"):
        entry.train()


def test_export_never_touches_a_folder_that_is_not_ours(entry, tmp_path):
    entry.train()
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("...")
    with pytest.raises(ExportError, match="is not empty and holds no exported model.*nothing was written"):
        entry.convert_for_prediction(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(ExportError):
        entry.convert_for_prediction(entry.model_save_dir)


def test_predict_says_what_is_missing_and_overwrites_nothing(entry, tmp_path, data_dir):
    entry.train()
    with pytest.raises(ConfigError, match="nothing to embed"):
        entry.predict()
    (tmp_path / "there.npy").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        entry.predict([data_dir / "images/00000000.png"], save_to=tmp_path / "there.npy")
    with pytest.raises(DataError, match="image cannot be read: No such file"):
        entry.predict(["/no/such.png"])


def test_no_exported_model(tmp_path):
    with pytest.raises(ServingError, match=r"plsc_model\.json is missing.*convert_for_prediction"):
        load_inference_model(tmp_path)


def test_a_folder_that_checkpoints_cannot_be_written_to_is_found_before_the_first_step(entry, tmp_path):
    (tmp_path / "file").write_text("")
    entry.set_model_save_dir(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="file: checkpoints cannot be written there: File exists"):
        entry.train()

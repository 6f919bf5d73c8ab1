"""What a checkpoint says of its run: damaged in any way, it is an error that names the key, in every command."""

from __future__ import annotations

import pytest

from plsc import CheckpointError
from plsc.checkpoint import Checkpoint
from plsc.engine.about import About
from plsc.engine.trainer import Trainer
from tests._support.manifests import edit_manifest


@pytest.fixture
def saved(entry, tmp_path):
    """A trained entry, and a function that edits what its checkpoint says of the run."""
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    return entry, lambda change: edit_manifest(tmp_path / "output" / "0", change)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.update(about={}), "about.epoch: Field required"),
        (lambda m: m["about"].pop("settings"), "about.settings: Field required"),
        (lambda m: m["about"].update(settings=[]), "about.settings: Input should be a valid dictionary"),
        (lambda m: m["about"]["settings"].pop("emb_dim"), "about.settings.emb_dim: Field required"),
        (
            lambda m: m["about"]["settings"].update(emb_dim="16"),
            "about.settings.emb_dim: Input should be a valid integer",
        ),
        (lambda m: m["about"].update(epoch=-1), "about.epoch: Input should be greater than or equal to 0"),
        (lambda m: m["about"].update(step=1.5), "about.step: Input should be a valid integer"),
        (lambda m: m["about"].update(images_in_epoch=None), "about.images_in_epoch: Input should be a valid integer"),
        (lambda m: m["about"].update(num_images="30"), "about.num_images: Input should be a valid integer"),
        (lambda m: m["about"].update(loss_scaling=[1]), "about.loss_scaling: Input should be a valid dictionary"),
        (lambda m: m["about"].pop("optimizer"), "about.optimizer: Field required"),
    ],
)
def test_a_damaged_entry_is_named_in_every_command(saved, tmp_path, change, message):
    entry, edit = saved
    edit(change)
    for run in (entry.train, entry.test, lambda: entry.predict([]), entry.convert_for_prediction):
        with pytest.raises(CheckpointError, match=f"output/0/manifest.json: the manifest is damaged: {message}"):
            run()


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("flip", "perhaps", "its settings are damaged: flip: got 'perhaps'"),
        ("pixel_std", [1, 0, 1], "its settings are damaged: pixel_std: "),
        ("image_shape", [3, -1, 16], "its settings are damaged: image_shape: "),
        (
            "model_name",
            "ResNetNone",
            "its network, ResNetNone, cannot be made: .* import the module that registers 'ResNetNone' first",
        ),
        ("model_name", "", "its network, , cannot be made: "),
        ("model_name", "os:path", "its network, os:path, cannot be made: "),
    ],
)
def test_a_setting_that_cannot_be_is_named(saved, name, value, message):
    entry, edit = saved
    edit(lambda manifest: manifest["about"]["settings"].update({name: value}))
    fresh = type(entry)()
    fresh.set_checkpoint_dir(entry.checkpoint_dir)
    with pytest.raises(CheckpointError, match=f"output/0: {message}"):
        fresh.predict([])


def test_a_loss_that_needs_what_the_checkpoint_lacks_leads_back_to_its_loss(saved):
    entry, _ = saved
    before = entry.loss_type
    entry.set_loss_type("softmax")
    with pytest.raises(
        CheckpointError, match=rf"no head bias.*set_loss_type\('{before}'\) as in training, or set_class_change"
    ):
        entry.train()


def test_what_an_earlier_version_wrote_is_read(saved):
    """Version 1 manifests without later keys, and with keys that are unknown here."""
    entry, edit = saved
    edit(lambda manifest: manifest["about"].pop("num_images"))
    edit(lambda manifest: manifest["about"].update(more={"a": [1]}))
    edit(lambda manifest: manifest["about"]["settings"].update(more=1))
    about = About.of(Checkpoint(entry.checkpoint_dir))
    assert (about.epoch, about.step, about.num_images) == (1, 3, None)
    assert about.model_dump()["more"] == {"a": [1]}
    assert Trainer(entry.config).step == 3


def test_what_a_trainer_writes_is_what_is_read(saved):
    entry, _ = saved
    found = Checkpoint(entry.checkpoint_dir).about
    assert About.model_validate(found).model_dump() == found

"""Which rank writes what of the head; checkpoints that do not fit the run that loads them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from plsc import BaseModel, CheckpointError, Config, Entry
from plsc.checkpoint import Checkpoint, save_checkpoint
from plsc.distributed.collectives import Collectives
from plsc.engine.state import head_parts, open_backbone
from plsc.engine.trainer import Trainer
from plsc.losses import Head
from plsc.utils.hints import command_line
from plsc.utils.ranges import Range
from tests._support.manifests import downgrade, edit_manifest, edited


class Rows(Head):
    """A head of a row per class, and a whole tensor."""

    def __init__(self, start, stop):
        self._classes, self._parameters = Range(start, stop), {"weight": paddle.zeros([stop - start, 4])}

    classes = property(lambda self: self._classes)
    parameters = property(lambda self: self._parameters)

    def state(self):
        return {**self.parameters, "mean": paddle.zeros([1])}


class Copy(Rows):
    is_copy = True


@pytest.mark.parametrize(
    "head, is_main, written",
    [
        (Rows(0, 6), True, [("head.weight", 0), ("head.mean", None)]),
        (Rows(0, 6), False, []),  # replicated
        (Rows(0, 3), True, [("head.weight", 0), ("head.mean", None)]),
        (Rows(3, 6), False, [("head.weight", 3)]),
        (Copy(3, 6), False, []),  # a lower rank holds these rows too
    ],
)
def test_each_rank_writes_its_shard_and_the_first_what_is_replicated(head, is_main, written):
    assert [(part.name, part.offset) for part in head_parts(head, is_main, num_classes=6)] == written


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


def test_a_checkpoint_of_another_number_of_sub_centers(entry):
    entry.set_subcenters(2)
    entry.train()
    assert Checkpoint(entry.model_save_dir).shape("head.weight") == [6, 2, 16]
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    entry.set_subcenters(3)
    with pytest.raises(CheckpointError, match=r"is 2, this run's is 3; set_subcenters\(2\), set_class_change"):
        entry.train()
    entry.set_subcenters(1)
    with pytest.raises(CheckpointError, match=r"this run's is 1; set_subcenters\(2\), .* plsc checkpoint subcenters"):
        entry.train()
    entry.set_subcenters(2)
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
    with pytest.raises(CheckpointError, match=r"network is plsc.models.tiny:ResNetTiny, this .*'ResNetTiny'"):
        entry.train()


class Own(BaseModel):
    """A network of the user's own."""

    def __init__(self, emb_dim=16, image_shape=(3, 16, 16)):
        super().__init__(emb_dim)
        self.body = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 16 * 16, emb_dim))

    def forward(self, images):
        return self.body(images)


class SameTensors(Own):
    """Another class of equal tensors."""


def own_network(entry, network):
    """An entry like `entry`, with a network of the user's own."""
    made = Entry()
    for name in ("dataset_dir", "num_classes", "image_shape", "emb_dim", "train_batch_size", "model_save_dir"):
        setattr(made, name, getattr(entry, name))
    made.num_workers, made.with_test, made.train_epochs = 0, False, 1
    if network is not None:
        made.set_model(network)
    return made


def test_a_network_of_ones_own_is_recorded_by_its_class(entry, tmp_path, caplog):
    name = f"{__name__}:Own"
    own_network(entry, Own()).train()
    about = json.loads((tmp_path / "output" / "0" / "manifest.json").read_text())["about"]
    assert about["network"] == name and "model_name" not in about["settings"]

    with pytest.raises(
        CheckpointError, match=f"network is an object of the class {name}, .*; set_model with an object"
    ):
        own_network(entry, None).convert_for_prediction()
    with (
        command_line(["--model-name"]),
        pytest.raises(CheckpointError, match=f"; --model-name {name}, or set_model in"),
    ):
        own_network(entry, None).convert_for_prediction()
    resumed = own_network(entry, None)
    resumed.set_checkpoint_dir(entry.model_save_dir)
    resumed.set_train_epochs(2)
    with pytest.raises(
        CheckpointError, match=f"its network is {name}, this run's is plsc.models.resnet:ResNet50; they"
    ):
        resumed.train()

    folder = own_network(entry, Own()).convert_for_prediction(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "plsc_model.json").read_text())["network"] == name
    assert folder == str(tmp_path / "model") and "have the same names" not in caplog.text
    own_network(entry, SameTensors()).convert_for_prediction(tmp_path / "other")
    assert (
        f"its network is {name}, this run's is {__name__}:SameTensors; their tensors have the same names" in caplog.text
    )


def test_a_checkpoint_from_before_networks_were_recorded(entry, tmp_path):
    own_network(entry, Own()).train()

    def change(manifest):
        del manifest["about"]["network"]
        manifest["about"]["settings"]["model_name"] = "ResNet50"  # what every network of one's own was recorded as

    edit_manifest(tmp_path / "output" / "0", change)
    own_network(entry, Own()).convert_for_prediction()
    with pytest.raises(
        CheckpointError, match="its network is ResNet50, .*; set_model_name or set_model as in training"
    ):
        own_network(entry, None).convert_for_prediction()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def restore(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)


def damaged_bytes(data, end, rng):
    """The same with one change in the first `end` bytes."""
    at, changed = rng.randrange(end), bytearray(data)
    kind = rng.choice(["bit", "byte", "zeros", "cut", "insert", "drop", "digit"])
    if kind == "bit":
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        changed[at] = rng.randrange(256)
    elif kind == "zeros":
        changed[at : at + 16] = bytes(len(changed[at : at + 16]))
    elif kind == "cut":
        del changed[at:]
    elif kind == "insert":
        changed.insert(at, rng.choice(b'0123456789"{}[],:-. '))
    elif kind == "drop":
        del changed[at]
    else:
        changed[rng.choice([index for index in range(end) if chr(data[index]).isdigit()])] = rng.choice(b"0123456789")
    return bytes(changed)


ODD = [
    None,
    True,
    -1,
    0,
    2,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    "",
    "x",
    "../x",
    "float64",
    [],
    {},
    [-1],
    {"a": 1},
]


def nodes(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*path, key)
        yield from nodes(inside, (*path, key))


def damaged_manifest(data, rng):
    """The same with one value replaced, left out or renamed; one that is not of a tensor as often as one that is."""

    def change(manifest):
        of_a_tensor = rng.random() < 0.5
        path = rng.choice([path for path in nodes(manifest) if (path[0] == "tensors") == of_a_tensor])
        inside = manifest
        for key in path[:-1]:
            inside = inside[key]
        action = rng.choice(["replace", "replace", "drop", "rename"])
        if action == "replace":
            inside[path[-1]] = rng.choice(ODD)
        elif action == "drop" or isinstance(inside, list):
            del inside[path[-1]]
        else:
            inside["renamed"] = inside.pop(path[-1])

    return edited(data, change)


def is_refused(run):
    """Whether a damaged checkpoint is refused, by the one error that is allowed."""
    try:
        run()
    except CheckpointError as error:
        assert "output/0" in str(error)
        return True
    return False


def set_size(folder, name, size):
    def change(manifest):
        files = manifest["files"]
        files[name] = size if manifest["version"] == 1 else {**files[name], "bytes": size}

    edit_manifest(folder, change)


@pytest.mark.parametrize("version", [1, 2])
def test_a_checkpoint_damaged_anywhere_is_read_or_refused(entry, tmp_path, version):
    """Seeded damage to the headers of all files and to the manifest: no other error than CheckpointError leaves."""
    entry.set_with_test(False)
    entry.train()
    folder, rng, refused = tmp_path / "output" / "0", random.Random(7), 0
    if version == 1:
        downgrade(folder)
    whole = files_of(folder)
    entry.set_checkpoint_dir(folder)
    entry.set_train_epochs(2)
    entry.set_model_save_dir(tmp_path / "resumed")
    entry.set_with_test(False)
    trainer = Trainer(entry.config)
    for number in range(100):
        name = sorted(whole)[number % len(whole)]
        data = whole[name]
        if name != "manifest.json":
            end = len(data) if name.endswith(".json") else 8 + int.from_bytes(data[:8], "little")
            damaged = damaged_bytes(data, end, rng)
            # The size that the manifest states fits, so that the file is opened.
            set_size(folder, name, len(damaged))
        else:
            damaged = damaged_bytes(data, len(data), rng) if number % 2 else damaged_manifest(data, rng)
        (folder / name).write_bytes(damaged)
        refused += is_refused(lambda: trainer._resume(Checkpoint(folder)))
        refused += is_refused(lambda: open_backbone(Config(checkpoint_dir=str(folder))))
        restore(folder, whole)
    assert refused > 100
    assert Path(open_backbone(Config(checkpoint_dir=str(folder)))[2].path) == folder


@pytest.mark.parametrize("damage", [lambda data: bytes(len(data)), lambda data: b"x" * len(data)])
def test_a_backbone_file_of_the_right_size_with_other_content_is_named_in_every_command(entry, tmp_path, damage):
    entry.train()
    file = tmp_path / "output" / "0" / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    for run in (entry.train, entry.test, lambda: entry.predict([]), entry.convert_for_prediction):
        with pytest.raises(CheckpointError, match="output/0/model.safetensors: tensor '.* cannot be read"):
            run()


def test_state_of_an_optimizer_that_does_not_fit_its_parameter_is_refused(entry, tmp_path):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)

    def rename(manifest):
        tensors = manifest["tensors"]
        tensors["optimizer.body.0.weight"] = tensors.pop("optimizer.body.0.weight:velocity")

    edit_manifest(tmp_path / "output" / "0", rename)
    with pytest.raises(CheckpointError, match="holds optimizer state of '', which this network lacks"):
        entry.train()


# What is not finite is neither written nor read


def break_checkpoint(folder, name, at):
    """Write NaN into a tensor of a checkpoint on disk, one without digests."""
    downgrade(folder)
    file = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(file)
    tensors[name][at] = np.nan
    save_file(tensors, file)


@pytest.mark.parametrize(
    "name, at, said",
    [
        ("backbone.head.1.weight", (2, 3), "backbone.head.1.weight holds nan in row 2"),
        ("backbone.body.1._variance", (0,), "backbone.body.1._variance holds nan in row 0"),
        ("optimizer.head.1.weight:velocity", (2, 3), "optimizer.head.1.weight:velocity holds nan in row 2"),
        ("head.weight", (4, 1), "head.weight holds nan in row 4"),
        ("head.weight:velocity", (5, 0), "head.weight:velocity holds nan in row 5"),
    ],
)
def test_a_checkpoint_with_a_number_that_is_not_finite_is_not_resumed(entry, tmp_path, name, at, said):
    entry.set_with_test(False)
    entry.train()
    break_checkpoint(tmp_path / "output" / "0", name, at)
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    with pytest.raises(CheckpointError, match=rf"output/0: {said}, expected finite numbers; use an earlier checkpoint"):
        entry.train()


@pytest.mark.parametrize("use", [lambda entry: entry.test(), lambda entry: entry.convert_for_prediction()])
def test_a_network_that_is_not_finite_is_neither_verified_nor_exported(entry, tmp_path, use):
    """ReLU hides the NaN of the first layer: every image would have the same embedding."""
    entry.train()
    break_checkpoint(tmp_path / "output" / "0", "backbone.body.1._mean", (0,))
    with pytest.raises(CheckpointError, match=r"backbone.body.1._mean holds nan in row 0"):
        use(entry)


class Half(Rows):
    def __init__(self):
        super().__init__(0, 6)
        velocity = paddle.ones([6, 4], "bfloat16")
        velocity[3, 1] = float("inf")
        self.velocity = velocity

    def state(self):
        return {**self.parameters, "weight:velocity": self.velocity}

    def has_row_per_class(self, name):
        return True


def test_bfloat16_is_checked_before_it_is_saved(tmp_path):
    parts = head_parts(Half(), True, num_classes=6)
    with pytest.raises(CheckpointError, match=r"head.weight:velocity holds inf in row 3"):
        save_checkpoint(tmp_path, "0", parts=parts, about={}, collectives=Collectives())
    assert not list(tmp_path.iterdir())


# Damage


def flip(file, prefix):
    """Flip a bit of the first tensor in a file whose name begins so."""
    data = bytearray(file.read_bytes())
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    name = next(name for name in header if name.startswith(prefix))
    data[size + header[name]["data_offsets"][0]] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "file, prefix, is_network",
    [
        ("classes-000000000.safetensors", "head.weight", False),
        ("model.safetensors", "optimizer.", False),
        ("model.safetensors", "backbone.", True),
    ],
)
def test_a_flipped_bit_is_found_by_every_command_that_reads_it(entry, tmp_path, file, prefix, is_network):
    entry.train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_epochs(2)
    flip(tmp_path / "output" / "0" / file, prefix)
    of_the_network = (entry.test, lambda: entry.predict([]), entry.convert_for_prediction)
    for run in (entry.train, *(of_the_network if is_network else ())):
        with pytest.raises(
            CheckpointError, match=f"output/0/{file}: tensor '{prefix}.*, rows 0 to .* differs from what"
        ):
            run()

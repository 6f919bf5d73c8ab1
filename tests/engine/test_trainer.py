"""Training: N ranks equal one, and a resumed run equals an unbroken one."""

from __future__ import annotations

import json
import os

import numpy as np
import paddle
import pytest

from plsc import CheckpointError, ConfigError, DataError, TrainingError, VerificationSet
from plsc.checkpoint import Checkpoint, tools
from plsc.data.loader import Batch
from plsc.distributed.topology import Topology
from plsc.engine.dataloading import build_dataloader
from plsc.engine.observers import Observer
from plsc.engine.trainer import Trainer
from plsc.losses import Head
from plsc.models.base_model import BaseModel
from plsc.models.tiny import ResNetTiny
from plsc.utils.ranges import Range
from tests._support.images import CLASSES, make_images
from tests._support.ranks import launch

GLOBAL_BATCH = 12


def train(ranks, folder, **settings):
    """Train and return {name: array} of everything in the last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": "plain",
        "train_epochs": 4,
        "num_workers": 0,
        "model_save_dir": str(folder / "output"),
        "train_batch_size": GLOBAL_BATCH // ranks,
        **settings,
    }
    launch(ranks, "train_worker.py", json.dumps(settings), log_dir=folder / "log")
    saved = Checkpoint(folder / "output")
    return {name: saved.read(name) for name in saved.names("")}


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-12)
        assert error <= tolerance, (name, error)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """Twenty steps on one rank: 4 epochs of 5."""
    return train(1, tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_training_on_ranks_equals_training_on_one(ranks, one_rank, tmp_path):
    assert_close(train(ranks, tmp_path), one_rank, 1e-5)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    "ranks, extra",
    [
        (4, {"head_group_size": 2}),
        (4, {"head_group_size": 2, "loss_type": "dist_uniface", "optimizer": "adamw", "lr": 0.05}),
        (3, {"head_group_size": 1}),
    ],
)
def test_groups_of_ranks_train_as_one_group(ranks, extra, tmp_path):
    one_group = {name: value for name, value in extra.items() if name != "head_group_size"}
    assert_close(train(ranks, tmp_path / "groups", **extra), train(ranks, tmp_path / "one", **one_group), 1e-5)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("extra", [{}, {"sample_ratio": 0.5, "center_storage": "bfloat16", "momentum_storage": "int8"}])
def test_groups_that_were_interrupted_end_as_if_they_were_not(extra, tmp_path):
    """To the bit with the groups of before; without sampling to float tolerance on any ranks in any groups."""
    settings = {"head_group_size": 2, "model": "dropout" if extra else "plain", **extra}
    unbroken = train(4, tmp_path / "unbroken", **settings)
    folder = str(tmp_path / "first" / "output")
    train(4, tmp_path / "first", train_epochs=None, train_steps=8, **settings)
    assert_close(train(4, tmp_path / "again", checkpoint_dir=folder, **settings), unbroken, 0.0)
    if not extra:
        for ranks, size in ((4, 4), (3, None), (2, 1)):
            given = {**settings, "checkpoint_dir": folder, "head_group_size": size}
            assert_close(train(ranks, tmp_path / f"{ranks} {size}", **given), unbroken, 1e-5)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("loss_type", ["arcface", "dist_softmax", "softmax", "curricularface", "uniface"])
def test_replicated_and_sharded_heads_equal_one_rank(loss_type, tmp_path):
    alone = train(1, tmp_path / "1", loss_type=loss_type, lr=0.5)
    assert_close(train(2, tmp_path / "2", loss_type=loss_type, lr=0.5), alone, 1e-5)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("loss_type", ["dist_arcface", "arcface", "dist_softmax"])
@pytest.mark.parametrize("name, lr", [("lars", 60.0), ("lion", 0.05)])
def test_lars_and_lion_on_ranks_equal_one_rank(name, lr, loss_type, tmp_path):
    """Sharded unevenly over three ranks, and replicated. The sign of a number near 0 may differ, by a step each way."""
    settings = {"optimizer": name, "lr": lr, "loss_type": loss_type, "decay_norms": False, "train_epochs": 2}
    alone, found = train(1, tmp_path / "1", **settings), train(3, tmp_path / "3", **settings)
    before = train(1, tmp_path / "0", **{**settings, "train_epochs": None, "train_steps": 1})
    assert found.keys() == alone.keys() and any(":" in key for key in found)
    for key in ("head.weight", "backbone.fc.weight"):
        difference, moved = np.abs(found[key] - alone[key]), np.abs(alone[key] - before[key]).max()
        assert moved > 1e-4
        assert np.quantile(difference, 1.0 if name == "lars" else 0.97) < 1e-3 * moved, key


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize(
    "fused, unfused, extra",
    [
        (None, "clipped", {}),
        ("sgd", "clipped sgd", {}),
        ("adamw", "clipped adamw", {"lr": 0.2}),
        (None, "clipped", {"logits": "recompute"}),
        (None, "clipped", {"loss_type": "dist_softmax", "lr": 0.5}),
    ],
)
def test_the_fused_update_gives_the_weights_of_the_whole_gradient(fused, unfused, extra, tmp_path):
    one = train(2, tmp_path / "fused", **({"optimizer": fused} if fused else {}), **extra)
    other = train(2, tmp_path / "unfused", optimizer=unfused, **extra)
    weights = [name for name in one if name in other and ":" not in name]
    assert {"head.weight", "backbone.fc.weight"} <= set(weights)
    assert_close({name: one[name] for name in weights}, {name: other[name] for name in weights}, 1e-5)


@pytest.mark.slow
@pytest.mark.ranks
def test_training_moves_the_weights(one_rank, tmp_path):
    before = train(1, tmp_path, train_epochs=None, train_steps=1)
    assert np.abs(before["head.weight"] - one_rank["head.weight"]).max() > 1e-3
    assert np.abs(before["backbone.fc.weight"] - one_rank["backbone.fc.weight"]).max() > 1e-3


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A function that trains 4 epochs on two ranks without a stop, once per network and settings."""
    runs = {}

    def run(model, extra):
        key = json.dumps([model, extra])
        if key not in runs:
            runs[key] = train(2, tmp_path_factory.mktemp("unbroken"), model=model, num_workers=1, **extra)
        return runs[key]

    return run


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("steps", [10, 8])
@pytest.mark.parametrize(
    "model, extra",
    [
        ("dropout", {}),
        ("batch norm", {}),
        ("dropout", {"optimizer": "adamw", "lr": 0.2}),
        ("plain", {"sample_ratio": 0.5}),
        ("plain", {"center_storage": "bfloat16", "momentum_storage": "int8"}),
        ("plain", {"center_storage": "bfloat16", "momentum_storage": "bfloat16", "sample_ratio": 0.5}),
        ("plain", {"loss_type": "dist_curricularface", "subcenters": 2}),
        ("plain", {"loss_type": "dist_uniface", "sample_ratio": 0.5, "subcenters": 3, "interclass_filter": 0.4}),
        ("plain", {"loss_type": "dist_adaface", "margin_warmup": 15}),
        ("plain", {"loss_type": "dist_elasticface_cos"}),
    ],
)
def test_resume_equals_never_having_stopped_bit_for_bit(model, extra, steps, unbroken, tmp_path):
    """At the end of an epoch, and within one."""
    whole = unbroken(model, extra)
    train(2, tmp_path / "broken", model=model, num_workers=1, train_epochs=None, train_steps=steps, **extra)
    broken = train(
        2, tmp_path / "broken", model=model, num_workers=1, checkpoint_dir=str(tmp_path / "broken" / "output"), **extra
    )
    assert_close(broken, whole, 0.0)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("before, after", [(2, 3), (4, 1), (1, 4)])
def test_resume_on_another_number_of_ranks(before, after, one_rank, tmp_path):
    train(before, tmp_path, train_epochs=2)
    resumed = train(after, tmp_path, checkpoint_dir=str(tmp_path / "output"))
    assert_close(resumed, one_rank, 1e-5)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("loss_type", ["dist_curricularface", "dist_sphereface2"])
def test_sub_centers_and_the_state_of_a_loss_resume_on_another_number_of_ranks(loss_type, tmp_path):
    settings = {"loss_type": loss_type, "subcenters": 3, "interclass_filter": 0.5}
    whole = train(1, tmp_path / "whole", **settings)
    assert whole["head.weight"].shape == whole["head.weight:velocity"].shape == (10, 3, 16)
    train(2, tmp_path, train_epochs=2, **settings)
    tools.reshard(tmp_path / "output", tmp_path / "four", ranks=4)
    resumed = train(3, tmp_path, checkpoint_dir=str(tmp_path / "four"), **settings)
    assert_close(resumed, whole, 1e-5)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("loss_type", ["dist_elasticface_arc_plus", "adaface", "dist_dynamic_margin"])
def test_a_loss_resumes_on_another_number_of_ranks(loss_type, tmp_path):
    whole = train(1, tmp_path / "whole", loss_type=loss_type, margin_warmup=15)
    train(2, tmp_path / "broken", loss_type=loss_type, margin_warmup=15, train_epochs=2)
    given = {"loss_type": loss_type, "margin_warmup": 15, "checkpoint_dir": str(tmp_path / "broken" / "output")}
    assert_close(train(3, tmp_path / "broken", **given), whole, 1e-4)


def test_image_counts_come_from_the_data(entry):
    entry.set_loss_type("dist_dynamic_margin")
    entry.train_dataset = [(np.zeros((32, 32, 3), np.uint8), label) for label in [0] * 16 + [1]]
    entry.set_class_num(3)
    margins = Trainer(entry.config).head._margin._margins
    np.testing.assert_allclose(margins.numpy(), [0.05, 0.5, 0.5], rtol=1e-6)
    entry.set_class_counts([1, 16, 81])
    margins = Trainer(entry.config).head._margin._margins
    np.testing.assert_allclose(margins.numpy(), [0.5, 0.05 + 0.45 * (1 / 2 - 1 / 3) / (1 - 1 / 3), 0.05], rtol=1e-6)


def test_a_reader_does_not_say_how_many_images_a_class_has(entry):
    entry.set_loss_type("dist_dynamic_margin")
    entry.train_reader = lambda: iter(())
    with pytest.raises(ConfigError, match=r"needs the number of training images .* set_class_counts\('counts.npy'\)"):
        Trainer(entry.config)
    entry.set_class_counts(np.ones(entry.num_classes))
    Trainer(entry.config)


@pytest.mark.slow
@pytest.mark.ranks
def test_ranks_verify_and_save_the_same_running_statistics(tmp_path):
    """The metrics that two ranks find are those of their checkpoint."""
    settings = {
        "model": "batch norm",
        "train_epochs": 1,
        "num_workers": 0,
        "verify": True,
        "train_batch_size": 6,
        "model_save_dir": str(tmp_path / "output"),
    }
    _, output = launch(2, "train_worker.py", json.dumps(settings), log_dir=tmp_path / "log")
    trained, tested = (
        [json.loads(line.split(" ", 1)[1]) for line in output.splitlines() if line.startswith(word)]
        for word in ("TRAINED", "TESTED")
    )
    for name in ("pixels/xnorm", "pixels/threshold", "pixels/accuracy"):
        assert trained[0][name] == trained[1][name] == pytest.approx(tested[0][name], rel=1e-6)


def test_the_newest_checkpoints_are_kept(entry, tmp_path):
    entry.set_train_epochs(4)
    entry.set_max_last_checkpoint_num(2)
    entry.train()
    assert sorted(path.name for path in (tmp_path / "output").iterdir() if path.is_dir()) == ["2", "3"]


class Blind(BaseModel):
    """Its embeddings are not numbers in the third training step."""

    def __init__(self):
        super().__init__(16)
        self.fc = paddle.nn.Linear(3 * 16 * 16, 16)
        self.calls = 0

    def build_network(self, input, label, is_train=True):
        self.calls += is_train
        return self.fc(input.flatten(1)) * (float("nan") if is_train and self.calls == 3 else 1.0)


def test_features_that_are_not_finite_say_where(entry):
    entry.set_model(Blind())
    with pytest.raises(
        TrainingError, match=r"epoch 0, step 3: the feature vector of .*holds nan.*set_on_nonfinite\('skip'"
    ):
        entry.train()
    assert not os.path.exists(os.path.join(entry.model_save_dir, "0"))


def test_features_that_are_not_finite_are_skipped_when_asked(entry, caplog):
    entry.set_model(Blind())
    entry.set_on_nonfinite("skip")
    entry.set_train_epochs(2)
    assert np.isfinite(entry.train()["loss"])
    assert "step 3 skipped: the feature vector of images/" in caplog.text


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_that_are_handed_in_train_as_those_of_the_settings(ranks, tmp_path):
    """Backbone, loader, head and observers; an observer is on rank 0 only, unless it asks for every rank."""
    settings = {"train_epochs": None, "train_steps": 4, "model": "dropout"}
    assert_close(
        train(ranks, tmp_path / "parts", hand_in=True, **settings), train(ranks, tmp_path / "settings", **settings), 0.0
    )
    observed = {}
    for log in (tmp_path / "parts" / "log").glob("workerlog.*"):
        for line in log.read_text().splitlines():
            if line.startswith("OBSERVED"):
                _, name, rank, losses = line.split(" ", 3)
                observed[name, int(rank)] = json.loads(losses)
    assert observed.keys() == {("main", 0), *(("every", rank) for rank in range(ranks))}
    assert len(observed["main", 0]) == 4
    assert all(losses == observed["main", 0] for losses in observed.values())
    for folder in ("parts", "settings"):
        lines = (tmp_path / folder / "output" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["loss"] for line in lines] == observed["main", 0]


class Batches:
    """A loader of a user's own: the fewest members that one needs."""

    num_images, skipped = 30, 0

    def __init__(self):
        self.asked, self.closed = [], 0

    def epoch(self, epoch, first_step=0):
        self.asked.append((epoch, first_step))
        images, labels = make_images()
        for start in range(10 * first_step, 30, 10):
            yield Batch(images[start : start + 10].transpose(0, 3, 1, 2), labels[start : start + 10])

    def close(self):
        self.closed += 1


class EqualImagesFirst(Batches):
    """The first batches hold one image over and over, with labels of all classes."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def epoch(self, epoch, first_step=0):
        for step, batch in enumerate(super().epoch(epoch, first_step), start=3 * epoch + first_step):
            equal = np.repeat(batch.images[:1], len(batch.images), axis=0)
            yield Batch(equal, batch.labels) if step < self.count else batch


def clipped_momentum(learning_rate, parameters):
    clip = paddle.nn.ClipGradByValue(1e9)  # clips nothing, but makes the head unfused
    return paddle.optimizer.Momentum(learning_rate, 0.9, parameters, weight_decay=5e-4, grad_clip=clip)


@pytest.mark.parametrize(
    "count, settings",
    [(1, {}), (4, {}), (4, {"optimizer": clipped_momentum}), (1, {"loss_type": "cosface"})],
    ids=["one", "four", "unfused", "cosface"],
)
def test_the_loss_falls_after_batches_of_equal_images(entry, count, settings):
    """Behind the last batch normalization their features are zero, or rounding noise."""
    entry.set_with_test(False)
    entry.set_train_steps(36)
    entry.set_scale(64)
    entry.set_lr(lambda step: 0.01)
    for name, value in settings.items():
        setattr(entry.config, name, value)
    trainer = Trainer(entry.config, loader=EqualImagesFirst(count))
    assert trainer.train()["loss"] < 1.0
    bias = next(value for name, value in trainer.backbone.named_parameters() if name == "head.2.bias")
    assert bias.abs().max() < 20.0


def test_a_configuration_of_another_type_is_refused():
    with pytest.raises(ConfigError, match="config: got dict, expected a plsc.Config"):
        Trainer({"num_classes": 6})


def test_a_loader_of_a_users_own(entry):
    loader = Batches()
    entry.set_train_epochs(2)
    entry.set_dataset_dir("/no/such/folder")
    entry.set_with_test(False)
    trainer = Trainer(entry.config, loader=loader)
    assert (trainer.steps_per_epoch, trainer.total_steps) == (3, 6)
    assert np.isfinite(trainer.train()["loss"])
    assert loader.asked == [(0, 0), (1, 0)]
    assert loader.closed == 1


def test_a_loader_of_a_users_own_resumes_within_an_epoch(entry):
    entry.set_with_test(False)
    entry.set_train_steps(2)
    Trainer(entry.config, loader=Batches()).train()
    entry.set_checkpoint_dir(entry.model_save_dir)
    entry.set_train_steps(5)
    loader = Batches()
    Trainer(entry.config, loader=loader).train()
    assert loader.asked == [(0, 2), (1, 0)]


def test_a_loader_made_for_another_batch_size_is_named(entry):
    loader = build_dataloader(entry.config, Topology())
    entry.set_train_batch_size(5)
    with pytest.raises(
        ConfigError, match=r"loader: was made for .* \(10, 0, 1\), this process trains with \(5, 0, 1\)"
    ):
        Trainer(entry.config, loader=loader)


def test_a_backbone_of_a_users_own(entry):
    backbone = ResNetTiny(emb_dim=16, image_shape=(3, 16, 16))
    trainer = Trainer(entry.config, backbone=backbone)
    before = backbone.state_dict()
    before = {name: value.numpy().copy() for name, value in before.items()}
    trainer.train()
    assert trainer.backbone is backbone
    assert any(np.abs(value.numpy() - before[name]).max() > 0 for name, value in backbone.state_dict().items())
    assert entry.config.model is None


def test_a_backbone_of_the_wrong_kind_is_named(entry):
    with pytest.raises(ConfigError, match=r"got 'ResNet50' \(str\), expected an instance of"):
        Trainer(entry.config, backbone="ResNet50")


def test_a_head_of_a_users_own(entry):
    """One that wraps the library's, and counts."""
    made = Trainer(entry.config).head

    class Counting:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            return getattr(made, name)

        def backward(self):
            self.calls.append("backward")
            return made.backward()

        def update(self, learning_rate):
            self.calls.append("update")
            made.update(learning_rate)

    head = Counting()
    Trainer(entry.config, head=head).train()
    assert head.calls == ["backward", "update"] * 3


class FewRows(Head):
    """A head that is right but for what a test changes."""

    def __init__(self, rows=CLASSES, **changes):
        self.parameters = {"weight": paddle.zeros([rows, 16])}
        self.classes = Range(0, CLASSES)
        self.__dict__.update(changes)

    def forward(self, features, labels, *, step=0, count_above=False):
        return features.sum()

    def backward(self):
        return self.gradient

    def update(self, learning_rate):
        pass


class NoUpdate(Head):
    classes, parameters = Range(0, CLASSES), {}

    def forward(self, features, labels, *, step=0, count_above=False): ...

    def backward(self): ...


class Before(NoUpdate):
    """Of a release in which `backward` moved the parameters."""

    def backward(self, learning_rate): ...


class Bare:
    def forward(self): ...

    def backward(self): ...


@pytest.mark.parametrize(
    "head, words",
    [
        (Bare, "head: got the class Bare, expected an object of it"),
        (
            Bare(),
            "head Bare has no update, discard, sum_of_squares, accuracy, target_cosines, centers, state, load, "
            "has_row_per_class, classes, parameters, optimizer_kind; plsc",
        ),
        (NoUpdate(), "head NoUpdate has no update; plsc.losses.Head is a base class that has all but .* and update"),
        (
            Before(),
            r"head Before: backward cannot be called without an argument: .*'learning_rate'; backward\(\) returns",
        ),
        (FewRows(classes=(0, 10)), r"head FewRows: classes is \(0, 10\), expected a Range within 0 to 6"),
        (FewRows(classes=Range(0, 7)), r"classes is Range\(start=0, stop=7\), expected a Range within 0 to 6"),
        (FewRows(5), r"head FewRows: parameter 'weight' is \[5, 16\], expected 6 rows"),
    ],
)
def test_what_is_no_head_is_found_when_a_trainer_is_made(entry, head, words):
    with pytest.raises(ConfigError, match=words):
        Trainer(entry.config, head=head)


@pytest.mark.parametrize("gradient", [None, paddle.zeros([10, 8])])
def test_the_gradient_of_a_users_head_is_checked(entry, gradient):
    with pytest.raises(ConfigError, match=r"head FewRows: backward returned .*, expected the gradient by the features"):
        Trainer(entry.config, head=FewRows(gradient=gradient)).train()


def test_what_is_no_loader_is_found_when_a_trainer_is_made(entry):
    with pytest.raises(ConfigError, match="loader: got list, which has no epoch, close, num_images, skipped; expected"):
        Trainer(entry.config, loader=[1, 2])


def test_contradictions_are_found_when_a_trainer_is_made(entry):
    entry.config.train_steps = 5
    with pytest.raises(ConfigError, match="train_epochs is 1 and train_steps is 5; set one of them"):
        Trainer(entry.config)


def pairs_of(images, name="mine"):
    return VerificationSet(name, images, is_same=[index % 2 == 0 for index in range(len(images) // 2)])


def write_pair(data_dir, *images):
    """A verification set of these images, as a file of the data folder."""
    path = data_dir / "mine.bin"
    pairs_of(list(images)).save(path)
    return path


def test_a_verification_set_of_one_pair_is_told_before_the_first_step(entry, data_dir, caplog):
    image = (data_dir / "images/00000000.png").read_bytes()
    write_pair(data_dir, image, image)
    entry.set_val_targets("lfw,mine")
    trainer = Trainer(entry.config)
    assert "verification set mine: no accuracy: found 1 same and 0 different pairs, expected both kinds" in caplog.text
    assert trainer.train()["mine/pairs"] == 1


def test_a_damaged_image_of_a_verification_set_is_found_before_the_first_step(entry, data_dir):
    image = (data_dir / "images/00000000.png").read_bytes()
    path = write_pair(data_dir, *[image] * 9, image[:40])
    entry.set_val_targets("mine")
    with pytest.raises(DataError, match=f"verification set {path}: image 9: no image: a truncated PNG of 40 bytes"):
        Trainer(entry.config)


@pytest.mark.parametrize("content", [b"", b"no pickle"])
def test_without_verification_no_set_is_opened(entry, data_dir, content):
    (data_dir / "lfw.bin").write_bytes(content)
    entry.test_reader = lambda: 1 / 0
    entry.set_with_test(False)
    entry.train()


def failing_reader():
    raise KeyError("pairs")


@pytest.mark.parametrize("setting", ["test_dataset", "test_reader"])
def test_sets_of_the_user_are_looked_at_before_the_first_step(entry, setting):
    image = make_images()[0][0]
    for sets, message in (
        (pairs_of([image, b"x"]), "set mine: image 1: 1 byte"),
        (
            [pairs_of([image] * 4), pairs_of([image, b"x", image, image], "odd")],
            "verification set odd: image 1: 1 byte",
        ),
    ):
        setattr(entry, setting, sets if setting == "test_dataset" else lambda sets=sets: sets)
        with pytest.raises(DataError, match=message):
            Trainer(entry.config)


def test_a_test_reader_that_fails_is_named(entry):
    entry.test_reader = failing_reader
    with pytest.raises(
        DataError, match="test_reader: calling it failed: KeyError: 'pairs'; correct the function"
    ) as found:
        Trainer(entry.config)
    assert isinstance(found.value.__cause__, KeyError)


class Events(Observer):
    def __init__(self):
        self.found = []

    def on_verify(self, step, results):
        self.found.append(("verify", step.number))

    def on_save(self, step, path):
        assert Checkpoint(path).about["step"] == step.number
        self.found.append(("save", step.number, path.name))

    def on_end(self, results, error):
        self.found.append(("end", type(error).__name__))


class NotNumbers(BaseModel):
    """Its embeddings are not numbers when it is verified, from the first verification on."""

    def __init__(self):
        super().__init__(16)
        self.fc = paddle.nn.Linear(3 * 16 * 16, 16)

    def build_network(self, input, label, is_train=True):
        return self.fc(input.flatten(1)) * (1.0 if self.training else float("nan"))


def test_a_verification_that_fails_costs_no_training(entry, tmp_path):
    entry.set_model(NotNumbers())
    entry.set_train_epochs(2)
    events = Events()
    with pytest.raises(
        DataError, match="verification set .*lfw.bin.* holds nan.*training up to here is saved in .*output/0"
    ) as found:
        Trainer(entry.config, observers=[events]).train()
    assert str(entry.dataset_dir) in str(found.value)
    assert events.found == [("save", 3, "0"), ("end", "DataError")]
    entry.set_checkpoint_dir(tmp_path / "output")
    entry.set_with_test(False)
    assert Trainer(entry.config).step == 3


def test_a_verification_that_fails_within_an_epoch_costs_no_training(entry, tmp_path):
    entry.set_model(NotNumbers())
    entry.set_train_epochs(2)
    entry.set_test_period(2)
    events = Events()
    with pytest.raises(DataError, match="training up to here is saved in .*output/0.2"):
        Trainer(entry.config, observers=[events]).train()
    assert events.found == [("save", 2, "0.2"), ("end", "DataError")]
    entry.set_checkpoint_dir(tmp_path / "output")
    entry.set_with_test(False)
    trainer = Trainer(entry.config)
    assert (trainer.step, trainer.epoch, trainer.step_in_epoch) == (2, 0, 2)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "output").iterdir() if path.is_dir()) == ["0", "0.2", "1"]


def test_an_epoch_is_saved_before_a_verification_that_is_due_at_its_last_step(entry, tmp_path):
    entry.set_model(NotNumbers())
    entry.set_train_epochs(2)
    entry.set_test_period(3)
    with pytest.raises(DataError, match="training up to here is saved in .*output/0$"):
        entry.train()


def test_a_run_of_steps_that_ends_within_an_epoch_is_saved_before_it_is_verified(entry, tmp_path):
    entry.set_model(NotNumbers())
    entry.set_train_steps(2)
    with pytest.raises(DataError, match="training up to here is saved in .*output/0.2"):
        entry.train()


@pytest.mark.parametrize("step, message", [(1, "no checkpoint can be"), (2, "checkpoint .*output/0 was not")])
def test_a_head_that_cannot_be_saved_is_a_checkpoint_error(entry, tmp_path, step, message):
    """After the first step, where it cannot be from the start."""
    trainer = Trainer(entry.config)
    state = trainer.head.state
    trainer.head.state = lambda: 1 / 0 if trainer.step >= step else state()
    with pytest.raises(CheckpointError, match=f"{message} written: ZeroDivisionError: division by zero"):
        trainer.train()
    assert trainer.step == (1 if step == 1 else trainer.steps_per_epoch)
    assert {path.name for path in (tmp_path / "output").iterdir()} <= {"metrics.csv", "metrics.jsonl", "run.json"}

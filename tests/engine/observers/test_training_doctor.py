"""The training doctor: each symptom at its border, a healthy run that is silent, and what a resumed run tells."""

from __future__ import annotations

import json
import math
import shutil
import time

import numpy as np
import paddle
import pytest

from plsc import Config
from plsc.data.records import Record, Records
from plsc.engine.diagnosis import Case, ClassCounts, Point, Symptom, at_start, in_course
from plsc.engine.diagnosis.at_start import AbsentLabels, LargeMargin, SingleLabels, UnfitRate, margin_cost
from plsc.engine.diagnosis.in_course import CollapsedFeatures, DataWait, FallingVerification, StuckLoss
from plsc.engine.diagnosis.untrained import untrained_loss
from plsc.engine.observers import Run, Step, TrainingClock, Values
from plsc.engine.observers.training_doctor import FINDINGS_FILE, SYMPTOMS, TrainingDoctor, count_classes


def case(counts=None, *, batch=128, steps_per_epoch=None, is_trained=False, **settings):
    settings = {"num_classes": 1000, "emb_dim": 512, **settings}
    return Case(
        config=Config(**settings),
        global_batch=batch,
        steps_per_epoch=steps_per_epoch,
        counts=counts,
        is_trained=is_trained,
    )


def counts(images=100_000, classes=1000, absent=0, single=0):
    return ClassCounts(images, classes, absent, single)


def first_finding(symptom, points):
    """(step, diagnosis) of the first point at which a symptom is told; None where it never is."""
    for point in points:
        found = symptom.at_point(point)
        if found is not None:
            return point.step, found
    return None


def flat(loss, steps, period=100, lr=0.1, **measures):
    return [Point(step, loss, lr, measures) for step in range(period, steps + 1, period)]


# At the start


@pytest.mark.parametrize("absent, is_told", [(0, False), (10, False), (11, True)])
def test_labels_that_never_occur_are_told_from_one_in_a_hundred_on(absent, is_told):
    found = AbsentLabels(case(counts(classes=1000, absent=absent))).at_start()
    assert (found is not None) == is_told
    if found is not None:
        assert "11 of 1,011 labels never occur" in found.seen and "set_min_images_per_class(1)" in found.cure


@pytest.mark.parametrize("single, is_told", [(0, False), (99, False), (100, True)])
def test_classes_of_one_image_are_told_from_one_in_ten_on(single, is_told):
    found = SingleLabels(case(counts(classes=1000, single=single))).at_start()
    assert (found is not None) == is_told
    if found is not None:
        assert "100 of 1,000 classes have one image" in found.seen and "set_min_images_per_class(2)" in found.cure


@pytest.mark.parametrize("symptom", [AbsentLabels, SingleLabels])
@pytest.mark.parametrize("known", [None, ClassCounts(100, 10, None, None)])
def test_what_is_not_known_of_labels_is_not_told(symptom, known):
    assert symptom(case(known)).at_start() is None


@pytest.mark.parametrize(
    "images, settings, is_told",
    [
        (4999, {}, True),
        (5000, {}, False),
        (4999, {"margin": 0.2}, False),
        (4999, {"loss_type": "softmax"}, False),
        (4999, {"loss_type": "adaface"}, True),
        (4999, {"loss_type": "adaface", "loss_options": {"m": 0.1}}, False),
        (4999, {"loss_type": "dynamic_margin"}, False),
    ],
)
def test_a_large_margin_is_told_below_five_images_per_class(images, settings, is_told):
    found = LargeMargin(case(counts(images=images), **settings)).at_start()
    assert (found is not None) == is_told
    if found is not None:
        assert found.seen.startswith("5.0 images per class") and "set_margin_warmup(2000)" in found.cure


@pytest.mark.parametrize(
    "settings, cost",
    [
        ({"loss_type": "cosface"}, 0.35),
        ({"loss_type": "arcface"}, 0.5 - math.cos(math.pi / 3 + 0.5)),
        ({"loss_type": "sphereface", "margin": 1.5}, 0.5),
        ({"loss_type": "elasticface_cos"}, 0.35),
        ({"loss_type": "magface"}, 0.5 - math.cos(math.pi / 3 + 0.45)),
        ({"loss_type": "softmax"}, None),
    ],
)
def test_the_cost_of_a_margin_at_60_degrees(settings, cost):
    assert margin_cost(Config(**settings)) == (None if cost is None else pytest.approx(cost))


@pytest.mark.parametrize("optimizer, limits", at_start.RATES.items())
def test_a_learning_rate_is_told_outside_of_what_its_optimizer_takes(optimizer, limits):
    least, most = limits
    for rate, word in ((least, None), (least * 0.99, "low"), (most, None), (most * 1.01, "high")):
        found = UnfitRate(case(optimizer=optimizer, lr=rate)).at_start()
        assert (found and f"too {word}" in found.means) == (None if word is None else True), (rate, found)
        if found is not None:
            assert f"set_lr({at_start.USUAL_RATES[optimizer]})" in found.cure and "plsc lr-find" in found.cure


def test_a_low_learning_rate_is_usual_for_a_network_that_is_trained():
    assert UnfitRate(case(lr=1e-5, is_trained=True)).at_start() is None
    assert UnfitRate(case(lr=1e-5, frozen=("stages.*",))).at_start() is None
    assert UnfitRate(case(lr=1e-5)).at_start() is not None


def test_the_rate_of_a_function_is_judged_by_the_batch_at_logged_steps():
    """1.0 at 1024 images is 0.125 at 128."""
    symptom = UnfitRate(case(batch=128, lr_schedule=lambda step: 1.0))
    assert symptom.at_start() is None
    assert symptom.at_point(Point(100, 5.0, 0.125)) is None
    found = symptom.at_point(Point(200, 5.0, 0.126))
    assert "0.126 at a global batch of 128" in found.seen and "too high" in found.means
    assert symptom.at_point(Point(300, 5.0, 1e-6)) is None  # the end of a schedule


@pytest.mark.parametrize(
    "batch, settings, is_told",
    [
        (8191, {}, False),
        (8192, {}, True),
        (8192, {"warmup_steps": 100}, False),
        (8192, {"lr_schedule": "one_cycle"}, False),
        (8192, {"optimizer": "adamw", "lr": 0.001}, False),
    ],
)
def test_a_large_batch_without_warm_up_is_told(batch, settings, is_told):
    found = UnfitRate(case(batch=batch, **settings)).at_start()
    assert (found is not None) == is_told
    if found is not None:
        assert "without warm-up" in found.seen and "set_warmup_epochs(1)" in found.cure


class Labeled(Records):
    """Records whose labels are known, or not."""

    def __init__(self, labels, is_known=True):
        self.numbers = np.asarray(labels)
        if is_known:
            self.labels = self.numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        return Record(np.zeros((8, 8, 3), np.uint8), int(self.numbers[index]))


def test_classes_are_counted_where_labels_are_known():
    assert count_classes(Labeled([0, 0, 2, 5, 5, 5]), 9) == ClassCounts(6, 3, 3, 1)
    assert count_classes(Labeled([0, 1], is_known=False), 9) == ClassCounts(2, 9, None, None)


# The loss


def mean_untrained_loss(config, batch=2500):
    """Of random directions, sample by sample in float64."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((config.num_classes, config.emb_dim))
    features = rng.standard_normal((batch, config.emb_dim))
    rows, features = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, features))
    cosines, labels = features @ rows.T, rng.integers(0, config.num_classes, batch)
    m1, m2, m3 = config.margins
    own = np.arange(batch), labels
    cosines[own] = np.cos(m1 * np.arccos(cosines[own]) + m2) - m3
    logits = config.loss_scale * cosines
    most = logits.max(axis=1)
    return float((most + np.log(np.exp(logits - most[:, None]).sum(axis=1)) - logits[own]).mean())


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "arcface"},
        {"loss_type": "cosface", "num_classes": 5000},
        {"loss_type": "sphereface", "scale": 30.0},
        {"loss_type": "combined", "margin1": 1.0, "margin2": 0.3, "margin3": 0.2, "scale": 45.0, "emb_dim": 256},
        {"loss_type": "arcface", "num_classes": 6000, "emb_dim": 128, "scale": 32.0},
    ],
)
def test_the_loss_of_a_head_that_has_learned_nothing(settings):
    config = case(**settings).config
    assert untrained_loss(config) == pytest.approx(mean_untrained_loss(config), rel=in_course.UNTRAINED_SHARE / 2)


def test_the_loss_of_softmax_that_has_learned_nothing_is_ln_c():
    assert untrained_loss(case(loss_type="softmax").config) == math.log(1000)
    assert untrained_loss(case(loss_type="dist_softmax", sample_ratio=0.1).config) == math.log(100)


@pytest.mark.parametrize(
    "settings", [{"loss_type": "adaface"}, {"loss_type": "uniface"}, {"subcenters": 3}, {"emb_dim": 256}]
)
def test_no_formula_is_better_than_a_wrong_one(settings):
    assert untrained_loss(case(**settings).config) is None


@pytest.mark.parametrize("settings", [{"loss_type": "softmax"}, {"loss_type": "arcface"}])
@pytest.mark.parametrize("factor, is_told", [(1.0, True), (0.981, True), (1.019, True), (0.94, False)])
def test_a_loss_equal_to_that_of_an_untrained_head_is_told(settings, factor, is_told):
    """At 0.94 of it, a course that begins at 1.2 of it is far from its start."""
    level = untrained_loss(case(**settings).config)
    points = [Point(100, 1.2 * level, 0.1), *flat(factor * level, 3000)[1:]]
    found = first_finding(StuckLoss(case(**settings)), points)
    assert (found is not None) == is_told
    if found is not None:
        assert found[0] == in_course.LEAST_STEPS and "nothing is learned" in found[1].means


@pytest.mark.parametrize("share, is_told", [(0.951, True), (0.949, False)])
def test_a_loss_near_its_start_is_told(share, is_told):
    settings = {"loss_type": "adaface", "num_classes": 100_000}
    points = [Point(100, 40.0, 0.1), *flat(40.0 * share, 2000)[1:]]
    found = first_finding(StuckLoss(case(**settings)), points)
    assert (found is not None) == is_told
    if found is not None:
        assert "it was 40 at the start" in found[1].seen and "set_margin_warmup(5000)" in found[1].cure


def test_a_loss_may_stay_for_an_epoch_and_while_rate_and_margin_rise():
    for settings, steps in (
        ({}, 1000),
        ({"steps_per_epoch": 4000}, 4000),
        ({"steps_per_epoch": 10**6}, 10_000),
        ({"warmup_steps": 3000}, 4000),
        ({"margin_warmup": 2000}, 3000),
        ({"warmup_epochs": 1, "steps_per_epoch": 2000}, 4000),
    ):
        found = first_finding(StuckLoss(case(loss_type="adaface", **settings)), flat(40.0, 20_000))
        assert found[0] == steps, settings


def test_a_loss_that_has_converged_before_it_was_logged_is_no_stuck_loss():
    for loss_type in ("adaface", "softmax"):  # below the loss of a guess among all classes
        guessing = 0.95 * math.log(1000)
        assert first_finding(StuckLoss(case(loss_type=loss_type)), flat(0.99 * guessing, 5000)) is None
        assert first_finding(StuckLoss(case(loss_type=loss_type)), flat(1.01 * guessing, 5000)) is not None
    half = untrained_loss(case().config) / 2
    assert first_finding(StuckLoss(case()), flat(0.99 * half, 5000)) is None
    assert first_finding(StuckLoss(case()), flat(1.01 * half, 5000)) is not None


def test_a_trained_network_may_stay_at_its_loss():
    assert first_finding(StuckLoss(case(loss_type="adaface", is_trained=True)), flat(40.0, 5000)) is None


def test_numbers_that_are_not_finite_are_passed_over():
    symptom = StuckLoss(case(loss_type="adaface"))
    assert first_finding(symptom, flat(math.nan, 5000)) is None
    assert first_finding(CollapsedFeatures(case()), flat(1.0, 5000, class_cosine=math.nan)) is None
    assert first_finding(DataWait(case()), flat(1.0, 5000, data_wait=math.nan)) is None


# Measures of logged steps


@pytest.mark.parametrize("cosine, is_told", [(0.9, True), (0.899, False)])
def test_collapsed_features_are_told_after_three_logged_steps(cosine, is_told):
    found = first_finding(CollapsedFeatures(case(warmup_steps=1000)), flat(9.0, 5000, class_cosine=cosine))
    assert (found is not None) == is_told
    if found is not None:
        assert found[0] == 1000 + in_course.COLLAPSED_STEPS + 300 and "set_lr(0.01)" in found[1].cure


def test_features_that_are_apart_in_between_have_not_collapsed():
    points = [
        Point(step, 9.0, 0.1, {"class_cosine": 0.5 if step % 300 == 0 else 0.99}) for step in range(100, 5000, 100)
    ]
    assert first_finding(CollapsedFeatures(case()), points) is None


@pytest.mark.parametrize("share, is_told", [(0.301, True), (0.3, False)])
def test_waiting_for_data_is_told_over_30_percent(share, is_told):
    points = [Point(100, 9.0, 0.1, {"data_wait": 1.0}), *flat(9.0, 2000, data_wait=share)[1:]]
    found = first_finding(DataWait(case()), points)
    assert (found is not None) == is_told
    if found is not None:
        assert found[0] == 400 and "30% of the time" in found[1].seen and "set_num_workers(4)" in found[1].cure


def test_what_is_not_measured_is_not_told():
    for symptom in (CollapsedFeatures, DataWait):
        assert first_finding(symptom(case()), flat(9.0, 5000)) is None


# Verification


def verified(accuracies, losses, pairs=6000.0, name="lfw/accuracy"):
    """The findings of a course: a logged loss before each verification."""
    symptom, found = FallingVerification(case()), []
    of = "lfw/pairs" if name == "lfw/accuracy" else "val/images"
    for number, (accuracy, loss) in enumerate(zip(accuracies, losses), 1):
        symptom.at_point(Point(100 * number, loss, 0.1))
        results = {name: accuracy} if pairs is None else {name: accuracy, of: pairs}
        found.append(symptom.at_verification(100 * number, results))
    return found


# Three standard errors of 0.9 on 6,000 pairs.
BORDER = 3 * math.sqrt(0.09 / 6000)


@pytest.mark.parametrize("name", ["lfw/accuracy", "val/top1"])
@pytest.mark.parametrize("drop, is_told", [(1.01 * BORDER, True), (0.99 * BORDER, False)])
def test_a_verification_that_falls_with_the_loss_is_told(name, drop, is_told):
    found = verified([0.8, 0.9, 0.9 - drop, 0.9 - drop], [9.0, 8.0, 7.0, 6.0], name=name)
    assert [each is not None for each in found] == [False, False, False, is_told]
    if is_told:
        assert "was 0.9000 at step 200" in found[3].seen and "fell from 8 to 6" in found[3].seen
        assert name.replace("/", ".") in found[3].cure


def test_a_verification_that_falls_once_or_with_a_loss_that_stays_is_not_told():
    assert not any(verified([0.9, 0.8, 0.9, 0.8, 0.91], [9.0, 8.0, 7.0, 6.0, 5.0]))
    assert not any(verified([0.9, 0.8, 0.8, 0.8], [8.0, 7.9, 7.9, 7.9]))
    assert not any(verified([math.nan] * 4, [9.0, 8.0, 7.0, 6.0]))


@pytest.mark.parametrize("drop, is_told", [(0.021, True), (0.019, False)])
def test_without_a_number_of_pairs_two_percent_count(drop, is_told):
    assert (verified([0.9, 0.9 - drop, 0.9 - drop], [9.0, 8.0, 7.0], pairs=None)[2] is not None) == is_told


def test_few_pairs_say_little():
    assert not any(verified([0.8, 0.6, 0.6], [9.0, 8.0, 7.0], pairs=20.0))


# The observer


class AtStep(Symptom):
    """Tells of step 4, and of the start."""

    name = "at_step_4"
    asked = ()

    def at_point(self, point):
        type(self).asked = (*self.asked, point.step)
        if point.step >= 4:
            return at_start.Diagnosis(f"loss {point.loss:g}", "it is a test", "nothing")
        return None


class AtStart(Symptom):
    name = "at_start"

    def at_start(self):
        return at_start.Diagnosis("the start", "it is a test", "nothing")


@pytest.fixture(autouse=True)
def _nothing_asked():
    AtStep.asked = ()


def begin(folder, symptoms=(AtStart, AtStep), *, first_step=0, checkpoint=None, period=2, total=20):
    doctor = TrainingDoctor(None, symptoms)
    config = Config(model_save_dir=str(folder), log_period=period, num_classes=10, train_steps=total)
    doctor.on_start(Run(config=config, first_step=first_step, total_steps=total, global_batch=8, checkpoint=checkpoint))
    return doctor


def step(number, read=None):
    class Loss:
        def item(self):
            read.append(number)
            return 3.0

    values = Values({"loss": 3.0 if read is None else Loss(), "lr": 0.1})
    return Step(number=number, epoch=0, values=values, clock=TrainingClock())


def test_each_finding_is_told_once_in_the_log_and_in_a_file(tmp_path, caplog):
    doctor = begin(tmp_path)
    for number in range(1, 11):
        doctor.on_step(step(number))
    assert [record.message for record in caplog.records] == [
        "training doctor: the start. It usually means: it is a test. Try: nothing",
        "training doctor: loss 3. It usually means: it is a test. Try: nothing",
    ]
    lines = [json.loads(line) for line in (tmp_path / FINDINGS_FILE).read_text().splitlines()]
    assert [(line["finding"], line["step"]) for line in lines] == [("at_start", 0), ("at_step_4", 4)]
    assert lines[1]["cure"] == "nothing"


def test_only_logged_steps_are_read(tmp_path):
    doctor, read = begin(tmp_path, (AtStep,), period=3), []
    for number in range(1, 5):
        doctor.on_step(step(number, read))
    assert read == [3] and AtStep.asked == (3,)


def write_metrics(folder, losses):
    lines = [{"event": "step", "step": number, "epoch": 0, "loss": loss, "lr": 0.1} for number, loss in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')


def test_a_run_that_resumes_knows_what_was_before_and_tells_nothing_twice(tmp_path, caplog):
    doctor = begin(tmp_path)
    for number in range(1, 7):
        doctor.on_step(step(number))
    assert len(caplog.records) == 2
    caplog.clear()
    AtStep.asked = ()
    write_metrics(tmp_path, {2: 3.0, 4: 3.0, 6: 3.0})
    doctor = begin(tmp_path, first_step=2, checkpoint=tmp_path / "0.2")  # before the step of the finding
    for number in range(3, 11):
        doctor.on_step(step(number))
    assert not caplog.records and AtStep.asked == ()
    assert len((tmp_path / FINDINGS_FILE).read_text().splitlines()) == 2


def test_a_run_that_resumes_goes_on_with_the_series_up_to_its_checkpoint(tmp_path):
    write_metrics(tmp_path, {2: 3.0, 3: None, 4: 3.0})
    doctor = begin(tmp_path, (AtStart, AtStep), first_step=3, checkpoint=tmp_path / "0.3")
    doctor.on_step(step(4))
    assert AtStep.asked == (2, 3, 4)
    assert [json.loads(line)["step"] for line in (tmp_path / FINDINGS_FILE).read_text().splitlines()] == [4]


def test_another_run_in_the_folder_begins_anew(tmp_path, caplog):
    begin(tmp_path)
    write_metrics(tmp_path, {2: 3.0})
    begin(tmp_path, first_step=2, checkpoint=tmp_path.parent / "elsewhere" / "0.2")
    assert len(caplog.records) == 2 and AtStep.asked == ()
    assert len((tmp_path / FINDINGS_FILE).read_text().splitlines()) == 1


def test_a_run_with_no_step_left_is_left_alone(tmp_path, caplog):
    begin(tmp_path, first_step=20)
    assert not caplog.records and not (tmp_path / FINDINGS_FILE).exists()


def test_a_symptom_that_fails_ends_the_doctor_and_not_the_training(tmp_path, caplog):
    class Failing(Symptom):
        name = "failing"

        def at_point(self, point):
            raise KeyError("loss")

    doctor = begin(tmp_path, (Failing,))
    for number in range(1, 9):
        doctor.on_step(step(number))
    assert [record.message for record in caplog.records] == [
        "training doctor: it failed and looks no more in this run: KeyError: 'loss'"
    ]


def test_a_folder_that_takes_no_file_hides_no_finding(tmp_path, caplog):
    begin(tmp_path / "missing")
    assert "the start" in caplog.text


# Real runs


def test_a_healthy_small_run_is_silent(entry, tmp_path, caplog):
    entry.set_train_epochs(4)
    entry.set_log_period(1)
    entry.train()
    assert "training doctor" not in caplog.text and not (tmp_path / "output" / FINDINGS_FILE).exists()


def test_a_run_tells_of_its_data_and_only_at_its_start(entry, tmp_path, caplog):
    """The labels 0 and 1000 have a hundred numbers without an image between them."""
    folder = tmp_path / "data"
    lines = (folder / "label.txt").read_text().splitlines()
    labels = [f"{line.split()[0]} {200 * int(line.split()[1])}\n" for line in lines]
    (folder / "label.txt").write_text("".join(labels))
    entry.set_class_num(1 + max(int(line.split()[1]) for line in labels))
    entry.set_auto_resume(True)
    entry.set_train_epochs(2)
    entry.train()
    assert caplog.text.count("labels never occur in the training data") == 1
    shutil.rmtree(tmp_path / "output" / "1")
    caplog.clear()
    entry.train()
    assert "resumed from" in caplog.text and "training doctor" not in caplog.text


class Constant(paddle.nn.Layer):
    """A network that gives every image nearly the same feature."""

    def __init__(self):
        super().__init__()
        self.feature = self.create_parameter([16], default_initializer=paddle.nn.initializer.Constant(1.0))

    def forward(self, images):
        return self.feature + 1e-3 * images.mean(axis=[1, 2, 3]).unsqueeze(1)


def test_a_run_with_a_dead_network_tells_that_features_have_collapsed(entry, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(in_course, "COLLAPSED_STEPS", 0)
    entry.set_model(Constant())
    entry.set_log_period(1)
    entry.set_train_steps(6)
    entry.set_with_test(False)
    entry.train()
    assert caplog.text.count("features of different classes have a mean cosine of 1.00, for 3 logged steps") == 1
    lines = [json.loads(line) for line in (tmp_path / "output" / FINDINGS_FILE).read_text().splitlines()]
    assert ("features_collapsed", 3) in [(line["finding"], line["step"]) for line in lines]


class Slow(Labeled):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def test_a_run_with_a_slow_source_tells_once_that_it_waits_for_data(entry, tmp_path, caplog):
    """Also where it is resumed from before the finding, or behind it."""
    entry.set_auto_resume(True)
    entry.save_steps = 3
    entry.train_dataset = Slow(np.arange(60) % 6)
    entry.set_image_shape((3, 8, 8))
    entry.set_log_period(1)
    entry.set_train_steps(5)
    entry.set_with_test(False)
    entry.train()
    assert caplog.text.count("training waits for data") == 1
    shutil.rmtree(next((tmp_path / "output").glob("0.5")))
    for steps in (5, 8):
        entry.set_train_steps(steps)
        caplog.clear()
        entry.train()
        assert "resumed from" in caplog.text and "training waits for data" not in caplog.text


def test_it_can_be_switched_off(entry, tmp_path, caplog):
    entry.set_optimizer("adamw")  # with the default learning rate, 0.1
    entry.set_training_doctor(False)
    entry.set_train_steps(1)
    entry.train()
    assert "training doctor" not in caplog.text
    entry.set_training_doctor(True)
    entry.set_model_save_dir(tmp_path / "other")
    entry.train()
    assert "training doctor: the learning rate is" in caplog.text


def test_every_symptom_has_a_name_of_its_own():
    names = [symptom.name for symptom in SYMPTOMS]
    assert all(names) and len(set(names)) == len(names) == 8

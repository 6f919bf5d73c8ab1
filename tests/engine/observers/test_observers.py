"""Observers: which events they get, on which ranks, and that what nobody reads is not read."""

from __future__ import annotations

import logging
import os

import pytest

from plsc import ConfigError, TrainingError
from plsc.engine import observers
from plsc.engine.observers import Observer, TrainingClock, Values
from plsc.engine.observers.group import ObserverGroup
from plsc.engine.trainer import Trainer


class Number:
    """A tensor of one element that counts how often it is read."""

    def __init__(self, value, reads, name="loss"):
        self.value, self.reads, self.name = value, reads, name

    def item(self):
        self.reads.append(self.name)
        return self.value


class Events(Observer):
    """Keeps the name of every event, with the step."""

    def __init__(self):
        self.found = []

    def on_start(self, run):
        self.found.append(("start", run.first_step, run.total_steps))

    def on_step(self, step):
        self.found.append(("step", step.number, step.epoch))

    def on_verify(self, step, results):
        self.found.append(("verify", step.number, step.epoch, results["lfw/pairs"]))

    def on_save(self, step, path):
        self.found.append(("save", step.number, path.name))

    def on_end(self, results, error):
        self.found.append(("end", *sorted(results)[:1], type(error).__name__))


def test_values_are_read_once_each_and_only_when_asked_for():
    reads = []
    values = Values({"loss": Number(2.0, reads), "acc1": Number(0.5, reads, "acc1"), "lr": 0.1})
    assert list(values) == ["loss", "acc1", "lr"] and len(values) == 3 and "loss" in values
    assert values["lr"] == 0.1
    assert reads == []
    assert values["loss"] == values["loss"] == 2.0
    assert reads == ["loss"]
    assert dict(values) == {"loss": 2.0, "acc1": 0.5, "lr": 0.1}
    assert reads == ["loss", "acc1"]


def test_training_reads_only_the_first_step_and_those_that_are_logged_or_end_an_epoch(entry, monkeypatch):
    reads, train_step = [], Trainer.train_step

    def counted(trainer, batch):
        values = train_step(trainer, batch)
        return {name: Number(float(value), reads, (trainer.step, name)) for name, value in values.items()}

    monkeypatch.setattr(Trainer, "train_step", counted)
    entry.set_with_test(False)
    entry.set_train_epochs(4)
    entry.set_log_period(5)
    Trainer(entry.config, observers=[Observer()]).train()
    assert reads == [(step, name) for step in (1, 3, 5, 6, 9, 10, 12) for name in ("loss", "lr")]


def test_the_clock_leaves_out_what_it_is_paused_for(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(observers.time, "perf_counter", lambda: now[0])
    clock = TrainingClock()
    now[0] = 103.0
    with clock.paused():
        now[0] = 110.0
        assert clock.seconds == 3.0
    now[0] = 111.0
    assert clock.seconds == 4.0


def test_an_observer_gets_every_event_in_order(entry):
    entry.set_train_epochs(2)
    entry.set_test_period(2)
    entry.set_async_save(False)  # otherwise a checkpoint is complete some steps later
    events = Events()
    Trainer(entry.config, observers=[events]).train()
    steps = [("step", number, (number - 1) // 3) for number in range(1, 7)]
    assert events.found == [
        ("start", 0, 6),
        *steps[:2],
        ("verify", 2, 0, 20),
        steps[2],
        ("verify", 3, 0, 20),
        ("save", 3, "0"),
        steps[3],
        ("verify", 4, 1, 20),
        *steps[4:],
        ("verify", 6, 1, 20),
        ("save", 6, "1"),
        ("end", "images/s", "NoneType"),
    ]


def test_a_step_is_verified_once(entry, caplog):
    entry.set_test_period(3)
    events = Events()
    results = Trainer(entry.config, observers=[events]).train()
    assert [event for event in events.found if event[0] == "verify"] == [("verify", 3, 0, 20)]
    assert caplog.text.count("lfw: accuracy") == 1
    assert results["lfw/pairs"] == 20


@pytest.mark.parametrize("event", ["on_start", "on_step", "on_verify", "on_save", "on_end"])
def test_an_exception_in_an_observer_stops_training_and_names_it(entry, event):
    def fail(self, *arguments):
        raise ValueError("no disk")

    loud, events = type("Loud", (Observer,), {event: fail})(), Events()
    with pytest.raises(TrainingError, match=rf"observer .*Loud: {event} raised ValueError: no disk") as error:
        Trainer(entry.config, observers=[loud, events]).train()
    assert isinstance(error.value.__cause__, ValueError)
    # The others are ended all the same.
    assert events.found[-1][0] == "end"
    assert sum(found[0] == "end" for found in events.found) == 1


def test_a_file_of_metrics_that_cannot_be_written_says_what_to_do(entry):
    os.makedirs(os.path.join(entry.model_save_dir, "metrics.jsonl"))
    with pytest.raises(TrainingError, match="MetricsFile: on_step raised IsADirectoryError.*mend what the system repo"):
        entry.train()


def test_a_failing_end_does_not_hide_the_error_before_it(entry, caplog):
    class Loud(Observer):
        def on_step(self, step):
            raise KeyError("first")

        def on_end(self, results, error):
            assert isinstance(error, TrainingError)
            raise ValueError("second")

    with pytest.raises(TrainingError, match="on_step raised KeyError: 'first'"):
        Trainer(entry.config, observers=[Loud()]).train()
    assert "on_end raised ValueError: second" in caplog.text


def test_an_observer_of_the_wrong_kind_is_named(entry):
    with pytest.raises(ConfigError, match=r"observer: got 'tensorboard' \(str\), expected an instance of a subclass"):
        Trainer(entry.config, observers=["tensorboard"])


def test_ranks_but_the_first_have_only_observers_of_every_rank():
    class EveryRank(Events):
        every_rank = True

    class Started:
        first_step, total_steps = 0, 1

    main, every = Events(), EveryRank()
    with ObserverGroup([main, every], is_main=False).running(Started(), {"loss": 1.0}):
        pass
    assert main.found == []
    assert every.found == [("start", 0, 1), ("end", "loss", "NoneType")]


def test_a_user_may_interrupt_training_and_the_observers_are_ended(entry, caplog):
    class Interrupt(Observer):
        def on_step(self, step):
            raise KeyboardInterrupt

    events = Events()
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyboardInterrupt):
        Trainer(entry.config, observers=[events, Interrupt()]).train()
    assert [event[0] for event in events.found[:-1]] == ["start", "step"]

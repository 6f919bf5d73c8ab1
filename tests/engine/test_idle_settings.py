"""Tests of `plsc.engine.idle_settings`."""

import pytest

from plsc import Config
from plsc.engine.idle_settings import warn_of_idle_settings


@pytest.mark.parametrize(
    "settings, other, words",
    [
        ({"class_change": "by_name"}, {"checkpoint_dir": "output"}, "class_change is set and has no effect: no check"),
        ({"class_change": "by_name"}, {"auto_resume": True}, "name one: set_checkpoint_dir"),
        ({"new_classes": "random"}, {"checkpoint_dir": "output"}, "new_classes is set and has no effect"),
        ({"counters": "anew"}, {"checkpoint_dir": "output"}, "counters is set and has no effect"),
        ({"pretrained_bgr": True}, {"pretrained": "net.pth"}, "pretrained_bgr is set and has no effect"),
        ({"pretrained_strict": True}, {"pretrained": "net.pth"}, "no weights are named; name them: set_pretrained"),
        ({"class_counts": [1, 2]}, {"loss_type": "dist_dynamic_margin"}, "loss_type 'dist_arcface' does not depend"),
        ({"class_counts": "counts.npy"}, {"margin_function": max}, "class_counts is set and has no effect"),
        (
            {"optimizer": "sgd", "momentum": 0.9},
            {"optimizer": "momentum"},
            "optimizer 'sgd' has none; with it: set_optimizer('momentum')",
        ),
        ({"loss_type": "softmax", "scale": 30}, {"loss_type": "arcface"}, "loss_type 'softmax' has no scale"),
    ],
)
def test_a_setting_without_effect_is_told_and_not_where_it_has_one(settings, other, words, caplog):
    warn_of_idle_settings(Config(**{**settings, **other}))
    assert not caplog.text
    warn_of_idle_settings(Config(**settings))
    assert words in caplog.text and len(caplog.records) == 1


def test_defaults_that_are_given_are_not_told(caplog):
    warn_of_idle_settings(Config(class_change="stop", counters="auto", pretrained_bgr=False, class_counts=""))
    assert not caplog.text

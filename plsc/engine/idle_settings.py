"""Settings that are set and have no effect in a run, because another one is missing or has no use for them."""

from __future__ import annotations

import logging

from plsc.config import Config
from plsc.utils.hints import setter

log = logging.getLogger("plsc")

_OF_A_START = ("class_change", "new_classes", "counters")
_OF_PRETRAINED = ("pretrained_strict", "pretrained_bgr")


def warn_of_idle_settings(config: Config) -> None:
    """Warn of each setting that has another value than its default and no effect; on one rank.

    Args:
        config: the settings of a training.
    """
    idle: dict[str, str] = {}
    if not config.checkpoint_dir and not config.auto_resume:
        idle |= dict.fromkeys(_OF_A_START, f"no checkpoint is named; name one: {setter('checkpoint_dir')}")
    if not config.pretrained:
        idle |= dict.fromkeys(_OF_PRETRAINED, f"no weights are named; name them: {setter('pretrained')}")
    if config.margin_function is None and config.loss_kind != "dynamic_margin":
        idle["class_counts"] = f"loss_type '{config.loss_type}' does not depend on them; leave it out"
    if config.loss_kind == "softmax":
        idle["scale"] = f"loss_type '{config.loss_type}' has no scale; leave it out"
    if config.optimizer == "sgd" and config.is_given("momentum"):  # elsewhere sgd takes a momentum
        with_it = setter("optimizer", "momentum")
        log.warning("momentum is set and has no effect: optimizer 'sgd' has none; with it: %s", with_it)
    defaults = type(config).model_fields
    for name, reason in idle.items():
        value = getattr(config, name)
        if value is not defaults[name].default and str(value) != str(defaults[name].default):
            log.warning("%s is set and has no effect: %s", name, reason)

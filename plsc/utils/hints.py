"""How a message says that a setting is set: by a setter in Python, by a flag on the command line.

A message names one of the two, the one that its reader can use. `plsc.cli` says, for the time of a command, that the
reader is at the command line. Forked processes inherit that.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Collection, Iterator
from typing import Any

# Settings whose setter in `Entry` is not named set_<setting>.
_SETTERS = {
    "num_classes": "set_class_num",
    "emb_dim": "set_emb_size",
    "lr_schedule": "set_lr",
    "lr_steps": "set_step_boundaries",
    "margin_function": "set_loss_type",
    "param_attr": "set_distfc_attr",
    "val_dataset_dir": "set_val_dataset",
    "use_fp16": "set_mixed_precision",
}
# Settings that are assigned as attributes: they have no setter, or one that sets several.
_ASSIGNED = {
    *("margin1", "margin2", "margin3", "pixel_mean", "pixel_std", "bias_attr"),
    *("augment_crop", "augment_rotate", "augment_color_jitter", "augment_rand_augment", "augment_rand_magnitude"),
    *("augment_gray", "augment_blur", "augment_erase"),
    *("amp_dtype", "amp_lists", "init_loss_scaling", "incr_every_n_steps", "decr_every_n_nan_or_inf"),
    *("incr_ratio", "decr_ratio", "use_dynamic_loss_scaling"),
    *("train_reader", "test_reader", "predict_reader", "train_dataset", "test_dataset"),
    *("save_steps", "save_minutes", "save_keep", "decay_norms"),
    *("pretrained_strict", "pretrained_bgr"),
}
# Settings that hold a Python object, which neither a flag nor a file can give.
_OBJECTS = {
    *("model", "train_reader", "test_reader", "predict_reader", "train_dataset", "val_dataset", "test_dataset"),
    *("head_optimizer", "margin_function", "param_attr", "bias_attr"),
}
# Arguments of functions whose flag has another name.
_FLAGS = {"image_size": "size", "num_pairs": "pairs"}

# The flags of the command that runs, as '--lr'; None where no command runs, so that Python is the reader's language.
_command_flags: frozenset[str] | None = None


@contextlib.contextmanager
def command_line(flags: Collection[str]) -> Iterator[None]:
    """Within it, messages name flags. It holds for all threads of the process, and for processes forked in it.

    Args:
        flags: those of the command that runs, as '--lr'.
    """
    global _command_flags
    before, _command_flags = _command_flags, frozenset(flags)
    try:
        yield
    finally:
        _command_flags = before


def setter(name: str, value: Any = ...) -> str:
    """How to set a setting of `Config`: 'set_lr(0.1)' in Python, '--lr 0.1' on the command line.

    Where the command that runs has no such flag, the flag is said to be that of plsc train. A Python object is set in a
    script, for which a message at the command line names the setter.

    Args:
        name: the setting, as in `Config`.
        value: the value to give; without it only the setter or the flag is named.

    Example:
        >>> f"no such class; {setter('num_classes', 5)}, or correct the label"
        'no such class; set_class_num(5), or correct the label'
    """
    if _command_flags is not None:
        return f"{_in_python(name, value)} in a script" if name in _OBJECTS else _flag(name, value, of="plsc train")
    return _in_python(name, value)


def argument(name: str, value: Any = ..., *, of: str = "plsc data convert") -> str:
    """How to give an argument of a function that is also a command: 'parts=4' in Python, '--parts 4' as a flag.

    Args:
        name: the argument, as the function names it.
        value: the value to give; without it only the argument or the flag is named.
        of: the command that has the flag. It is named where another command runs, which has no such flag.
    """
    if _command_flags is not None:
        return _flag(_FLAGS.get(name, name), value, of=of)
    return f"{name}=..." if value is ... else f"{name}={_plain(value)!r}"


def either(python: str, command: str) -> str:
    """`python` for a reader in Python, `command` for one at the command line."""
    return python if _command_flags is None else command


def can_set(name: str) -> bool:
    """Whether the reader can give a setting: always in Python, at the command line where the command has the flag."""
    return _command_flags is None or flag_of(name) in _command_flags


def flag_of(name: str) -> str:
    """The flag of a setting: 'train_batch_size' -> '--train-batch-size'."""
    return "--" + name.replace("_", "-")


def _in_python(name: str, value: Any) -> str:
    if name in _ASSIGNED:
        return f"entry.{name}" if value is ... else f"entry.{name} = {_plain(value)!r}"
    method = _SETTERS.get(name, f"set_{name}")
    return method if value is ... else f"{method}({_plain(value)!r})"


def _flag(name: str, value: Any, *, of: str) -> str:
    flag = flag_of(name)
    where = "" if _command_flags is None or flag in _command_flags else f" of {of}"
    if value is False:
        flag = flag_of(f"no_{name}")
    if value is ... or isinstance(value, bool):
        return flag + where
    value = _plain(value)
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"{flag} {shlex.quote(text)}{where}"


def _plain(value: Any) -> Any:
    """A value as Python's `repr` should show it in a message: paths as text."""
    return str(value) if hasattr(value, "__fspath__") else value

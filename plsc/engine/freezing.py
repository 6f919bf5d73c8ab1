"""Parameters and running statistics of the backbone that stay as they are."""

from __future__ import annotations

import fnmatch
import logging
import weakref
from collections.abc import Callable, Sequence

import paddle

from plsc.errors import ConfigError
from plsc.utils.hints import setter
from plsc.utils.names import nearest_name
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

# Of each network the names that are frozen, and what undoes it: a script may train one network several times.
_FROZEN: weakref.WeakKeyDictionary[paddle.nn.Layer, tuple[frozenset[str], list[Callable[[], None]]]] = (
    weakref.WeakKeyDictionary()
)


def freeze(backbone: paddle.nn.Layer, patterns: Sequence[str]) -> dict[str, paddle.Tensor]:
    """Keep what matches a pattern as it is, and nothing that an earlier call has named.

    A layer whose running statistics match is computed as in evaluation, by these statistics.

    Args:
        backbone: the network.
        patterns: of names in its `state_dict`, as 'stages.*': * for any characters, ? for one, [ab] for one of these.

    Returns:
        The parameters that are not frozen, by name.

    Raises:
        ConfigError: a pattern matches no name; names those that are near.
    """
    for undo in _FROZEN.pop(backbone, (frozenset(), []))[1]:
        undo()
    tensors = backbone.state_dict()
    names = frozenset(name for pattern in patterns for name in _matches(pattern, list(tensors)))
    undos: list[Callable[[], None]] = []
    parameters = dict(backbone.named_parameters())
    trained = [name for name in names if name in parameters and not parameters[name].stop_gradient]
    for prefix, layer in backbone.named_sublayers(include_self=True):
        if _own_statistics(layer, prefix) & names:
            undos.append(_evaluate(layer))
    for name in trained:
        _stop(parameters[name], undos)
    slopes = [layer for layer in backbone.sublayers(include_self=True) if isinstance(layer, paddle.nn.PReLU)]
    if trained:
        undos.extend(layer.register_forward_pre_hook(_ask_for_gradient).remove for layer in slopes)
    if names:
        _FROZEN[backbone] = names, undos
        size = sum(int(parameters[name].size) for name in trained)
        log.info(
            "frozen: %s of %d, with %s, and %s",
            counted(len(trained), "parameter"),
            sum(not tensor.stop_gradient for tensor in parameters.values()) + len(trained),
            counted(size, "number"),
            counted(len(names) - len(trained), "running statistic"),
        )
    return {name: tensor for name, tensor in parameters.items() if name not in names}


def frozen_names(backbone: paddle.nn.Layer) -> frozenset[str]:
    """The names of what `freeze` keeps as it is."""
    return _FROZEN[backbone][0] if backbone in _FROZEN else frozenset()


def _matches(pattern: str, names: list[str]) -> list[str]:
    found = fnmatch.filter(names, pattern)
    if not found:
        plain = pattern.rstrip("*").rstrip(".")
        # The names of layers too: a pattern without an asterisk often means one of them.
        layers = {name.rpartition(".")[0] for name in names} - {""}
        parts = {".".join(layer.split(".")[:length]) for layer in layers for length in range(1, layer.count(".") + 2)}
        near = nearest_name(plain, [*sorted(parts, key=len), *names])
        hint = "" if near is None else f"; did you mean '{near}{'.*' if near in parts else ''}'?"
        if fnmatch.filter(names, pattern.removeprefix("backbone.")):  # as in a checkpoint's list of tensors
            hint = f"; leave out 'backbone.': '{pattern.removeprefix('backbone.')}'"
        begins = ", ".join(dict.fromkeys(f"{name.split('.')[0]}.*" if "." in name else name for name in names))
        raise ConfigError(
            f"{setter('frozen')}: the pattern {pattern!r} matches no parameter of the backbone{hint}; its parameters "
            f"begin with {begins}"
        )
    return found


def _stop(parameter: paddle.Tensor, undos: list[Callable[[], None]]) -> None:
    def undo() -> None:
        parameter.stop_gradient = False

    parameter.stop_gradient = True
    undos.append(undo)


def _own_statistics(layer: paddle.nn.Layer, prefix: str) -> set[str]:
    """The names of the running statistics that a layer itself has."""
    own = [*layer.named_parameters(include_sublayers=False), *layer.named_buffers(include_sublayers=False)]
    start = f"{prefix}." if prefix else ""
    return {f"{start}{name}" for name, tensor in own if tensor.stop_gradient and tensor.is_floating_point()}


def _evaluate(layer: paddle.nn.Layer) -> Callable[[], None]:
    """Compute a layer as in evaluation; returns what undoes it."""

    def to_evaluation(layer: paddle.nn.Layer, _: object) -> None:
        layer.training = False

    # A hook, since the whole network is set to training again after each verification.
    hook = layer.register_forward_pre_hook(to_evaluation)

    def undo() -> None:
        hook.remove()
        layer.training = True

    return undo


def _ask_for_gradient(layer: paddle.nn.Layer, inputs: tuple[paddle.Tensor]) -> tuple[paddle.Tensor] | None:
    """Have the gradient by the input of a PReLU computed where that by its slopes is.

    Paddle's kernel for the CPU writes both, and ends the process with a segmentation fault where it is asked for that
    by the slopes alone, as behind frozen layers.
    """
    (values,) = inputs
    if layer._weight.stop_gradient or not values.stop_gradient:
        return None
    values = values.detach()
    values.stop_gradient = False
    return (values,)

"""A network saved as a Paddle inference model, in the new representation or the legacy one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import paddle
from paddle import nn
from paddle.jit.dy2static.program_translator import ProgramTranslator

from plsc.errors import ExportError
from plsc.export.baking import BakedNetwork
from plsc.utils.c_stderr import quiet_c_stderr
from plsc.utils.files import utf8_folder

# Functions that Paddle 3.3 cannot trace in the legacy representation, as function, method or layer: an expression that
# computes the same and can be traced. F is paddle.nn.functional.
INSTEAD = {
    "sigmoid": "1 / (1 + math.e ** -x)",
    "tanh": "x - F.tanhshrink(x)",
    "softplus": "-F.log_sigmoid(-x)",
    "gelu": "x * (1 + paddle.erf(x * 0.5 ** 0.5)) / 2",
    "exp": "math.e ** x",
    "sqrt": "x ** 0.5",
    "rsqrt": "x ** -0.5",
    "abs": "F.relu(x) + F.relu(-x)",
    "maximum": "x + F.relu(y - x)",
    "minimum": "x - F.relu(x - y)",
    "matmul": "x @ y",
    "bmm": "x @ y",
    "sum": "x.mean(axis) * x.shape[axis]",
}


def save_traced(network: nn.Layer, spec: paddle.static.InputSpec, *, prefix: Path, legacy: bool = False) -> None:
    """Write PREFIX.json (PREFIX.pdmodel if `legacy`) and PREFIX.pdiparams.

    Args:
        network: in evaluation mode.
        spec: shape and type of its one input.
        prefix: path without a suffix, in an existing folder.
        legacy: write the representation of Paddle 2, which Paddle Serving needs.

    Raises:
        ExportError: a layer cannot be traced; the message names it and what in it failed.
    """
    # FLAGS_enable_pir_api has no effect after the import of Paddle 3: it would silently write the new representation.
    guard = paddle.pir_utils.OldIrGuard() if legacy else contextlib.nullcontext()
    entered: list[str] = []
    try:
        with (
            quiet_c_stderr(),
            guard,
            _names_of_entered_layers(network, entered),
            utf8_folder(prefix.parent) as folder,
        ):
            paddle.jit.save(network, str(folder / prefix.name), input_spec=[spec])
    except Exception as error:
        # Paddle 3.3 keeps the parameters of a failed trace by the program's address, and uses them for a later program
        # at the same address.
        ProgramTranslator.reset()
        if "No space left" in str(error):
            raise ExportError(f"{prefix.parent}: no space is left there for the model") from None
        raise ExportError(_explain(network, entered, error, legacy)) from None
    model = prefix.with_name(prefix.name + (".pdmodel" if legacy else ".json"))
    if not model.is_file():
        raise ExportError(
            f"Paddle {paddle.__version__} did not write {model.name}, expected it to; this Paddle "
            f"cannot write the {'legacy' if legacy else 'new'} representation"
        )


@contextlib.contextmanager
def _names_of_entered_layers(network: nn.Layer, entered: list[str]) -> Iterator[None]:
    """Keep the names of the layers being called in `entered`, outermost first.

    After a failure the last name is that of the layer that failed.
    """

    def leave(layer: nn.Layer, inputs: object, outputs: object) -> None:
        entered.pop()

    handles = []
    for name, layer in network.named_sublayers(include_self=True):
        handles.append(layer.register_forward_pre_hook(lambda layer, inputs, name=name: entered.append(name)))
        handles.append(layer.register_forward_post_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _explain(network: nn.Layer, entered: list[str], error: Exception, legacy: bool) -> str:
    name = entered[-1] if entered else ""
    layers = dict(network.named_sublayers(include_self=True))
    # The name as the user knows it, without the layer that baking adds.
    shown = name[len("backbone.") :] if isinstance(network, BakedNetwork) and name.startswith("backbone.") else name
    where = f"layer '{shown}' ({type(layers[name]).__name__})" if name else type(network).__name__
    text = str(error)
    found = re.search(r"(\w+)\(\): argument .* must be Value, but got", text)
    if legacy and found:
        instead = f"Write {INSTEAD[found[1]]} for it" if found[1] in INSTEAD else "Do without it"
        return (
            f"{where}: paddle.{found[1]} cannot be traced in the legacy representation, which Paddle Serving "
            f"needs. {instead} in a forward of your own, or export without 'legacy' and 'serving': the formats "
            f"'paddle' and 'onnx' and plsc serve take it"
        )
    return (
        f"{where}: cannot be traced{' in the legacy representation' if legacy else ''}: {last_line(error)}. Its "
        f"forward must be a function of tensors, without data-dependent Python"
    )


def last_line(error: Exception) -> str:
    """The message of an exception of Paddle, without the stack traces that precede it."""
    return next((line.strip()[:300] for line in reversed(str(error).splitlines()) if line.strip()), repr(error))

"""Networks as graphs of operators whose shapes are known and whose numbers are not: made in no time and no memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import paddle

from plsc.utils.c_stderr import quiet_c_stderr


@contextlib.contextmanager
def graph_mode() -> Iterator[Any]:
    """Where layers are made without numbers, and a call of one adds its operators to the graph that is returned.

    Example:
        >>> with graph_mode() as graph:
        ...     features = network_class()(graph_images((3, 112, 112)))
        >>> features.shape, [operator.name() for operator in graph.global_block().ops]
    """
    was_dynamic, place = paddle.in_dynamic_mode(), paddle.device.get_device()
    # Paddle counts its names from 0 again where eager execution begins again; two parameters would have one name.
    names = paddle.utils.unique_name.switch()
    graph = paddle.static.Program()
    paddle.enable_static()
    try:
        with (
            quiet_c_stderr(),
            warnings.catch_warnings(),
            paddle.static.program_guard(graph, paddle.static.Program()),
            paddle.utils.unique_name.guard(),
        ):
            warnings.simplefilter("ignore")
            yield graph
    finally:
        if was_dynamic:
            paddle.disable_static(place)
        paddle.utils.unique_name.switch(*names)


def graph_images(image_shape: Sequence[int], batch: int = 1) -> Any:
    """Images [batch, 3, H, W] in the present graph."""
    return paddle.static.data("images", [batch, *image_shape], "float32")

"""What a backbone costs: parameters, multiply-adds and memory per image, from its graph, without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from plsc.errors import ConfigError
from plsc.models.graph import graph_images, graph_mode
from plsc.models.layers import batch_norms, running_statistics
from plsc.models.registry import create_backbone

_BATCH = 64  # large, so that what does not grow with the batch has no weight
# Operators whose result is their input under another shape, in the same memory.
_VIEWS = {f"pd_op.{name}" for name in ("reshape", "flatten", "squeeze", "unsqueeze", "transpose")}
# Operators whose gradient needs the shape of their inputs alone, although it is given them.
_ONLY_SHAPES = {
    f"pd_op.{name}_grad"
    for name in ("reshape", "flatten", "squeeze", "unsqueeze", "transpose", "slice", "split", "concat", "stack")
    + ("add", "subtract", "sum", "mean", "expand", "tile", "cast")
}
_ITEM_BYTES = {"bool": 1, "uint8": 1, "int64": 8, "float64": 8, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Complexity:
    """What a backbone costs.

    Attributes:
        parameters: numbers that training moves or that are frozen; running statistics are none.
        multiply_adds: of convolutions and matrix products, for one image in evaluation.
        image_bytes: what the backward pass needs of the forward pass, for one image in training, in float32.
    """

    parameters: int
    multiply_adds: int
    image_bytes: int


def measure_backbone(name: str, *, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112)) -> Complexity:
    """What the backbone of a name costs.

    Args:
        name: as `create_backbone` takes it.
        emb_dim: embedding size D.
        image_shape: (3, H, W) of its input.

    Raises:
        ConfigError: there is no such backbone, it does not take these arguments, or it cannot be traced.
    """
    return measure(lambda: create_backbone(name, emb_dim=emb_dim, image_shape=image_shape), name, image_shape)


def measure(make: Callable[[], nn.Layer], name: str, image_shape: Sequence[int]) -> Complexity:
    """What the network costs that `make` returns, [N, 3, H, W] -> [N, D]; see `measure_backbone`."""
    # Two graphs: Paddle's time for one grows with the square of its operators.
    with graph_mode() as graph:
        network = make()
        network.eval()
        _trace(network, name, graph_images(image_shape))
        multiply_adds, parameters = count_multiply_adds(graph), count_parameters(network)
    with graph_mode() as graph:
        network = make()
        network.train()
        features = _trace(network, name, graph_images(image_shape, _BATCH))
        forward = len(graph.global_block().ops)
        paddle.static.append_backward(features.sum())
        operators = graph.global_block().ops
        kept = _kept_bytes(operators[:forward], operators[forward:])
    return Complexity(parameters, multiply_adds, kept // _BATCH)


def _trace(network: nn.Layer, name: str, images: Any) -> Any:
    try:
        return network(images)
    except Exception as error:
        last = next((line for line in reversed(str(error).splitlines()) if line.strip()), repr(error))
        raise ConfigError(
            f"backbone '{name}' cannot be traced with images {list(images.shape)}: {last.strip()[:300]}; give it "
            f"images of another size, or leave data-dependent Python out of its forward"
        ) from error


def count_parameters(network: nn.Layer) -> int:
    """Numbers of a network's parameters. Paddle counts running statistics of batch normalization as such, too."""
    statistics = {id(tensor) for layer in batch_norms(network) for tensor in running_statistics(layer)}
    return sum(math.prod(item.shape) for item in network.parameters() if id(item) not in statistics)


def count_multiply_adds(graph: Any) -> int:
    """Multiply-adds of the convolutions and matrix products of what `graph_mode` returned."""
    return sum(map(_products, graph.global_block().ops))


def _products(operator: Any) -> int:
    """Multiply-adds of an operator: each number of its result times the numbers that are summed for it."""
    kind = operator.name().removeprefix("pd_op.")
    if kind not in ("conv2d", "depthwise_conv2d", "conv2d_transpose", "matmul", "bmm", "addmm"):
        return 0
    made: int = math.prod(operator.result(0).shape)
    first, second = ([int(size) for size in operator.operand_source(index).shape] for index in (0, 1))
    if kind == "conv2d_transpose":
        return math.prod(first) * math.prod(second[1:])
    if kind in ("conv2d", "depthwise_conv2d"):
        return made * math.prod(second[1:])
    if kind == "addmm":
        return made * second[-1]
    return made * first[-2 if kind == "matmul" and operator.attrs()["transpose_x"] else -1]


def _kept_bytes(forward: Sequence[Any], backward: Sequence[Any]) -> int:
    """Bytes of what `forward` makes and `backward` reads, each once, without parameters."""
    readers = {operator.id() for operator in backward if operator.name() not in _ONLY_SHAPES}
    kept: dict[str, int] = {}
    owner: dict[str, str] = {}  # of the memory of each value
    for operator in forward:
        if operator.name() in ("builtin.parameter", "builtin.combine"):
            continue
        is_view = operator.name() in _VIEWS
        for value in [value for value in operator.results() if value.initialized()]:
            owner[value.id] = owner.get(operator.operand_source(0).id, value.id) if is_view else value.id
            if any(reader.id() in readers for reader in value.all_used_ops()):
                kept[owner[value.id]] = max(_bytes_of(value), kept.get(owner[value.id], 0))
    return sum(kept.values())


def _bytes_of(value: Any) -> int:
    """Of a tensor; 0 of a list of tensors, which count by themselves, and of what has no size yet."""
    if not value.is_dense_tensor_type() or -1 in value.shape:
        return 0
    numbers: int = math.prod(value.shape)
    return numbers * _ITEM_BYTES.get(str(value.dtype).split(".")[-1].lower(), 4)

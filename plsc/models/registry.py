"""Backbones by name: those that are registered, any class as 'package.module:Class', and Paddle's own networks.

Nothing here imports Paddle before a backbone is looked up, so that a name can be checked where it is given.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from plsc.errors import ConfigError
from plsc.utils.imports import import_object
from plsc.utils.lazy import require_paddle
from plsc.utils.names import did_you_mean

if TYPE_CHECKING:
    from paddle import nn

log = logging.getLogger("plsc")

Factory = Callable[..., "nn.Layer"]
F = TypeVar("F", bound=Factory)

_NUMBER = re.compile(r"([0-9]+)")
# Name -> the class or function that creates it, or 'package.module:Class'.
_BACKBONES: dict[str, Factory | str] = {}
# Module whose functions are no backbones -> (module, function), which makes one of the name of a function.
_MAKERS = {"paddle.vision.models": ("plsc.models.zoo", "vision_backbone")}


@overload
def register_backbone(name: F) -> F: ...


@overload
def register_backbone(name: str) -> Callable[[F], F]: ...


@overload
def register_backbone(name: str, factory: F) -> F: ...


@overload
def register_backbone(name: str, factory: str) -> str: ...


def register_backbone(name: str | F, factory: F | str | None = None) -> Any:
    """Make a backbone known by name, for `create_backbone`, `Entry.set_model_name` and `Config.model_name`.

    The name is known in the processes that run this call. A command such as `plsc train` runs no script; there the
    form 'package.module:Class' names a backbone without registration.

    Args:
        name: the name. As a decorator without a name, the class's own.
        factory: a class or function called as factory(emb_dim=..., image_shape=...) that returns a
            `paddle.nn.Layer` from images [N, 3, H, W] to embeddings [N, D]; or 'package.module:Class', which is
            imported when the name is first used.

    Returns:
        `factory`, or a decorator if only a name is given.

    Raises:
        ConfigError: the name belongs to another backbone, or the factory cannot be called.

    Example:
        >>> @register_backbone
        ... class SmallNet(plsc.BaseModel):
        ...     def __init__(self, emb_dim=512, image_shape=(3, 112, 112)): ...
        >>> @register_backbone("small")
        ... def make_small(emb_dim, image_shape): ...
        >>> register_backbone("small_too", SmallNet)
        >>> register_backbone("large", "my_package.nets:LargeNet")
    """
    if not isinstance(name, str):
        return _register(getattr(name, "__name__", type(name).__name__), name)
    if factory is not None:
        return _register(name, factory)
    return functools.partial(_register, name)


def list_backbones() -> list[str]:
    """The names that `create_backbone` knows, in alphabetical order, numbers by their value."""
    return sorted(
        _BACKBONES, key=lambda name: [int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(name))]
    )


def create_backbone(name: str, *, emb_dim: int = 512, image_shape: Sequence[int] = (3, 112, 112)) -> nn.Layer:
    """Create a backbone by name.

    Args:
        name: one of `list_backbones()`, 'package.module:Class', or 'paddle.vision.models:resnet18'.
        emb_dim: embedding size D.
        image_shape: (3, H, W) of its input.

    Returns:
        A layer from images [N, 3, H, W] to embeddings [N, D], float32, not normalized.

    Raises:
        ConfigError: no such name, module or class, or it cannot be created with these two arguments.

    Example:
        >>> net = create_backbone("ResNetTiny", emb_dim=128, image_shape=(3, 32, 32))
        >>> net(paddle.rand([2, 3, 32, 32])).shape
        [2, 128]
    """
    layer = require_paddle().nn.Layer
    factory = find_backbone(name)
    try:
        inspect.signature(factory).bind(emb_dim=emb_dim, image_shape=image_shape)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"backbone '{name}' cannot be called as {factory_name(factory)}(emb_dim=..., image_shape=...): {error}; "
            f"give it these two parameters"
        ) from None
    backbone: nn.Layer = factory(emb_dim=emb_dim, image_shape=tuple(image_shape))
    if not isinstance(backbone, layer):
        raise ConfigError(
            f"backbone '{name}': {factory_name(factory)} returned {type(backbone).__name__}, expected a paddle.nn.Layer"
        )
    if ":" in name:
        log.info("backbone %s is from %s", name, getattr(sys.modules.get(factory.__module__), "__file__", None))
    return backbone


def find_backbone(name: str) -> Factory:
    """The class or function that creates the backbone of a name.

    Raises:
        ConfigError: no such name, module or class.
    """
    if not isinstance(name, str):
        raise ConfigError(f"model_name: got {name!r} ({type(name).__name__}); expected a name")
    found = _BACKBONES.get(name)
    if callable(found):
        return found
    if found is None and ":" not in name:
        raise ConfigError(
            f"model_name: got {name!r} (str); {did_you_mean(name, _BACKBONES)}accepted: {', '.join(list_backbones())}, "
            f"names registered in this process, or 'package.module:Class'"
        )
    return _import_backbone(found or name)


def _register(name: str, factory: F | str) -> F | str:
    if not name or ":" in name:
        raise ConfigError(f"register_backbone: got the name {name!r}, expected a name without ':'")
    if not callable(factory) and not (isinstance(factory, str) and ":" in factory):
        raise ConfigError(
            f"register_backbone('{name}'): got {factory!r} ({type(factory).__name__}), expected a class, a function "
            f"f(emb_dim, image_shape) or 'package.module:Class'"
        )
    known = _BACKBONES.get(name)
    # The same definition, run again, replaces itself: a notebook's cell, a reloaded module.
    if known is not None and factory_name(known) != factory_name(factory):
        raise ConfigError(f"register_backbone('{name}'): the name belongs to {factory_name(known)}; choose another")
    _BACKBONES[name] = factory
    return factory


def factory_name(factory: Factory | str) -> str:
    """A class or function as 'package.module:Class'."""
    if isinstance(factory, str):
        return factory
    return f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__qualname__)}"


def _import_backbone(name: str) -> Factory:
    """The class or function that 'package.module:Class' names."""
    require_paddle()
    module_name, _, attribute = name.partition(":")
    if module_name in _MAKERS and attribute.isidentifier():
        maker_module, maker = _MAKERS[module_name]
        made: Factory = getattr(importlib.import_module(maker_module), maker)(attribute)
        return made
    factory: Factory = import_object(name, "model_name")
    return factory

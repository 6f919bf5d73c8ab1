"""Seeds that depend only on the run's seed and progress, so that a resumed run draws what an unbroken run draws."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np


def derive_seed(*parts: int) -> int:
    """A seed of 31 bits from integers of 0 or more, for example the run's seed, the step and the rank.

    Equal parts give equal seeds; different parts give independent seeds.

    Example:
        >>> derive_seed(7, 120, 3) == derive_seed(7, 120, 3)
        True
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def seed_global_generators(seed: int) -> None:
    """Seed the global generators of NumPy, of Python and, where Paddle is loaded, of Paddle on the processor.

    Args:
        seed: 0 to 2^64 - 1. NumPy takes its lowest 32 bits.

    Example:
        >>> seed_global_generators(7)
        >>> draws = np.random.rand(), random.random()
        >>> seed_global_generators(7)
        >>> draws == (np.random.rand(), random.random())
        True
    """
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    if (generator := _paddle_generator()) is not None:
        generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


@contextlib.contextmanager
def kept_global_generators() -> Iterator[None]:
    """Set the generators that `seed_global_generators` seeds back to their states after the `with` block."""
    generator = _paddle_generator()
    states = np.random.get_state(), random.getstate(), generator and generator.get_state()
    try:
        yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
        if generator is not None:
            generator.set_state(states[2])


def _paddle_generator() -> Any:
    """Paddle's generator on the processor, or None where the process has not loaded Paddle."""
    paddle = sys.modules.get("paddle")
    framework = getattr(paddle, "framework", None)  # missing while Paddle is being loaded
    return None if framework is None else framework.core.default_cpu_generator()

"""Images, and every call on an exported model, for tests of models that are shared."""

from __future__ import annotations

import numpy as np

from plsc.data.images import decode
from tests._support.servers import make_image
from tests._support.stress import compared

IMAGES = [make_image(seed) for seed in range(7)]


def every_call(model):
    """A `work` of tests/_support/stress.py: every method, batches of every size, each compared with the lone call."""
    pixels = np.stack([decode(image).transpose(2, 0, 1) for image in IMAGES])
    calls = [lambda image=image: model.embed(image) for image in IMAGES]
    calls += [lambda size=size: model.embed(iter(IMAGES), size) for size in (1, 2, 3, 32)]
    calls += [lambda count=count: model.embed_pixels(pixels[:count]) for count in (1, 3)]
    calls += [lambda count=count: model.run(model.card.normalize(pixels[-count:])) for count in (1, 2)]
    return compared(lambda number: calls[number](), len(calls))

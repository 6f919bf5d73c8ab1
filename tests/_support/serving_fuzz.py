"""Inputs and checks of the property tests of the server's parsers."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from plsc.inference.model_card import ModelCard
from plsc.serving.http_error import HTTPError

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


SHAPE = (3, 4, 4)


seeds = st.integers(0, 2**32)


def card(takes_pixels):
    return ModelCard(
        directory=Path("."),
        image_shape=SHAPE,
        emb_dim=4,
        flip=False,
        takes_pixels=takes_pixels,
        gives_unit=False,
        bgr=False,
        weights="",
        plain_kernels=False,
        pixel_mean=127.5,
        pixel_std=128.0,
    )


def only_4xx(function, *arguments, **options):
    """The function's result, or None if it raised an error of status 4xx."""
    try:
        return function(*arguments, **options)
    except HTTPError as error:
        assert 400 <= error.status < 500 and error.reason
        return None


def mutate(body, rng):
    """A few bytes changed, cut out, doubled or put in."""
    body = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(body) + 1)
        way = rng.randrange(4)
        if way == 0 and at < len(body):
            body[at] = rng.randrange(256)
        elif way == 1:
            del body[at : at + rng.randrange(1, 40)]
        elif way == 2:
            body[at:at] = body[at : at + rng.randrange(1, 40)]
        else:
            body[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 8)))
    return bytes(body)

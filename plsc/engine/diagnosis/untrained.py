"""The loss of a last layer that has learned nothing."""

from __future__ import annotations

import math

from plsc.config import Config

# Of the logits, in units of ln n. Up to here the formula is right to 1 % for 1,000 classes and more.
_MOST_VARIANCE = 1.2


def untrained_loss(config: Config) -> float | None:
    """The expected loss of random features; None for losses and settings for which no formula is known here.

    softmax gives every one of the n classes of a step the same probability: ln n. With a margin psi and scale s, the
    cosines of random directions in D dimensions are normal with variance 1/D, so that in expectation

        loss = ln(exp(s psi(0)) + sum_j exp(s cos_j)) - s psi(0),     ln sum_j exp(s cos_j) = ln(n - 1) + s^2 / 2D

    where psi(0) = cos(m1 pi/2 + m2) - m3 is the target logit at a right angle. Where s^2 / D comes near 2 ln n, a few
    terms make up the sum (the random energy model, Derrida, 1981), and its expected logarithm is less: None.

    Args:
        config: the settings, with the number of classes.
    """
    count = max(2, round(config.num_classes * config.sample_ratio))
    if config.loss_kind == "softmax":
        return math.log(count)
    if config.margins is None or config.margin_function is not None or config.subcenters > 1:
        return None
    m1, m2, m3 = config.margins
    scale, variance = config.loss_scale, config.loss_scale**2 / config.emb_dim
    if variance > _MOST_VARIANCE * math.log(count):
        return None
    target = scale * (math.cos(m1 * math.pi / 2 + m2) - m3)
    others = math.log(count - 1) + variance / 2
    most = max(target, others)
    return most + math.log(math.exp(target - most) + math.exp(others - most)) - target

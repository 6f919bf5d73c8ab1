"""A slow oracle in float64 of the losses that change the negatives, sample by sample and center by center.

`Case` names a loss; `margin` makes the library's object for it, `expect` what it must give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from plsc.losses.margins.binary import SphereFace2, UniFace
from plsc.losses.margins.combined import CombinedMargin
from plsc.losses.margins.curricularface import CurricularFace
from tests._support.head_oracle import gradient_weight, norm, psi


class Expected(NamedTuple):
    loss: float
    features: np.ndarray
    weight: np.ndarray
    bias: float
    t: float


@dataclass(frozen=True)
class Case:
    """kind: 'margin', 'curricularface', 'sphereface2' or 'uniface'."""

    kind: str = "margin"
    subcenters: int = 1
    filter_above: float | None = None
    margins: tuple[float, float, float] = (1.0, 0.5, 0.0)
    scale: float = 64.0
    t: float = 0.0
    bias: float | None = None
    options: dict = field(default_factory=dict)

    def margin(self):
        """A new object of the library."""
        if self.kind == "margin":
            return CombinedMargin(*self.margins)
        made = {"curricularface": CurricularFace, "sphereface2": SphereFace2, "uniface": UniFace}[self.kind]
        margin = made(**self.options)
        if self.kind == "curricularface":
            margin.load({"t": np.array([self.t])})
        else:
            margin.start(num_classes=10, scale=self.scale)
            if self.bias is not None:
                margin.load({"bias": np.array([self.bias]), "bias_velocity": np.zeros(1, np.float32)})
        return margin

    def expect(self, features, labels, weight, *, classes=None):
        """What the loss must be; classes: the only ones in the sum."""
        centers = (weight if weight.ndim == 3 else weight[:, None]).astype(np.float64)
        classes = range(len(centers)) if classes is None else classes
        return _Problem(self, features.astype(np.float64), labels, centers, classes).solve(weight.shape)


class _Problem:
    def __init__(self, case, features, labels, centers, classes):
        self.case, self.features, self.labels, self.centers, self.classes = case, features, labels, centers, classes
        self.d_x, self.d_w = np.zeros_like(features), np.zeros_like(centers)
        self.loss = self.bias_gradient = 0.0
        options = {"m": 0.4, "t": 3.0, "balance": 0.7 if case.kind == "sphereface2" else 1.0, "weight": 50.0}
        self.options = {**options, **case.options}
        self.bias = 0.0
        if case.kind in ("sphereface2", "uniface"):
            # The library computes the initial one, and holds it in float32.
            self.bias = float(case.margin().bias.numpy()[0])

    def cosine(self, n, c, k):
        x, w = self.features[n], self.centers[c, k]
        return float(np.dot(x, w)) / (norm(x, 1e-12) * norm(w, 1e-4))

    def nearest(self, n, c):
        """(cosine, sub-center)."""
        found = [self.cosine(n, c, k) for k in range(self.centers.shape[1])]
        best = max(range(len(found)), key=lambda k: (found[k], -k))
        return found[best], best

    def solve(self, shape):
        case, count = self.case, len(self.features)
        self.t = case.t
        if case.kind == "curricularface":
            average = case.options.get("average", 0.01)
            mean = np.mean([self.nearest(n, int(self.labels[n]))[0] for n in range(count)])
            self.t = (1 - average) * self.t + average * float(mean)
        for n in range(count):
            (self.binary if case.kind in ("sphereface2", "uniface") else self.softmax)(n, int(self.labels[n]), count)
        return Expected(self.loss / count, self.d_x, self.d_w.reshape(shape), self.bias_gradient, self.t)

    def negatives(self, n, label):
        """(class, sub-center, cosine) of all that count."""
        for c in self.classes:
            if c != label:
                cosine, k = self.nearest(n, c)
                if self.case.filter_above is None or cosine <= self.case.filter_above:
                    yield c, k, cosine

    def softmax(self, n, label, count):
        case, (own_cosine, own_k) = self.case, self.nearest(n, label)
        margins = (1.0, case.options.get("m", 0.5), 0.0) if case.kind == "curricularface" else case.margins
        target, slope = psi(own_cosine, *margins)
        entries = []
        for c, k, cosine in self.negatives(n, label):
            if case.kind == "curricularface" and cosine > target:
                entries.append((c, k, cosine, cosine * (self.t + cosine), self.t + 2 * cosine))
            else:
                entries.append((c, k, cosine, cosine, 1.0))
        logits = [case.scale * entry[3] for entry in entries]
        own = case.scale * target
        peak = max([own, *logits])
        exponentials = [math.exp(z - peak) for z in logits]
        others = math.fsum(exponentials)
        total = others + math.exp(own - peak)
        self.loss += math.log(total) + peak - own
        weight = gradient_weight(self.features[n]) * case.scale / count
        for (c, k, cosine, _, derivative), e in zip(entries, exponentials):
            self.add(n, c, k, cosine, weight * e / total * derivative)
        self.add(n, label, own_k, own_cosine, -weight * others / total * slope)

    def binary(self, n, label, count):
        m, power, balance = self.options["m"], self.options["t"], self.options["balance"]
        scale, is_sphere = self.case.scale, self.case.kind == "sphereface2"
        own_weight = balance * self.options["weight"] / scale if is_sphere else 1.0
        other_weight = (1 - balance) * self.options["weight"] / scale if is_sphere else balance

        def g(cosine):
            if not is_sphere:
                return cosine, 1.0
            half = (cosine + 1) / 2
            return 2 * half**power - 1, power * half ** (power - 1)

        cosine, k = self.nearest(n, label)
        value, slope = g(cosine)
        logit = scale * (value - m) + self.bias
        omega = gradient_weight(self.features[n]) / count
        self.loss += own_weight * softplus(-logit)
        self.add(n, label, k, cosine, -omega * own_weight * sigmoid(-logit) * scale * slope)
        self.bias_gradient -= omega * own_weight * sigmoid(-logit)
        for c, k, cosine in self.negatives(n, label):
            value, slope = g(cosine)
            logit = scale * (value + (m if is_sphere else 0.0)) + self.bias
            self.loss += other_weight * softplus(logit)
            self.add(n, c, k, cosine, omega * other_weight * sigmoid(logit) * scale * slope)
            self.bias_gradient += omega * other_weight * sigmoid(logit)

    def add(self, n, c, k, cosine, by_cosine):
        x, w = self.features[n], self.centers[c, k]
        x_norm, w_norm = norm(x, 1e-12), norm(w, 1e-4)
        self.d_x[n] += by_cosine * (w / w_norm - cosine * x / x_norm) / x_norm
        self.d_w[c, k] += by_cosine * (x / x_norm - cosine * w / w_norm) / w_norm


def softplus(value):
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def sigmoid(value):
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def with_subcenters(problem, subcenters, *, noise=0.05):
    """The problem with so many centers per class, around the one it has; two classes have equal ones."""
    features, labels, weight, bias = problem
    if subcenters == 1:
        return problem
    rng = np.random.default_rng(1)
    noise = noise * rng.standard_normal((len(weight), subcenters, weight.shape[1]))
    centers = (weight[:, None] + noise).astype(weight.dtype)
    centers[labels[0], 1] = centers[labels[0], 0]
    centers[0, 1] = centers[0, 0]
    return features, labels, centers, bias


CASES = {
    "subcenters 3": Case(subcenters=3),
    "subcenters 2, cosface": Case(subcenters=2, margins=(1.0, 0.0, 0.35), scale=30.0),
    "subcenters 3, scale 128": Case(subcenters=3, scale=128.0),
    "filter": Case(filter_above=0.2),
    "curricularface": Case("curricularface", t=0.3),
    "curricularface, t 0": Case("curricularface", options={"m": 0.3, "average": 0.5}, scale=30.0),
    "sphereface2": Case("sphereface2", scale=40.0),
    "sphereface2, t 2": Case("sphereface2", scale=30.0, options={"t": 2.0, "m": 0.1, "balance": 0.5}, bias=-3.0),
    "uniface": Case("uniface"),
    "uniface, bias": Case("uniface", options={"balance": 0.5}, bias=-20.0),
    "uniface, high logits": Case("uniface", scale=200.0, bias=-2.0),
    "all": Case("curricularface", subcenters=3, filter_above=0.3, t=0.2),
    "uniface, subcenters, filter": Case("uniface", subcenters=2, filter_above=0.3),
    "sphereface2, subcenters, filter": Case("sphereface2", subcenters=3, filter_above=0.25, scale=40.0),
}

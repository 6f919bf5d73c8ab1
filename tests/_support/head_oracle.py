"""A slow ArcFace and softmax oracle in float64, sample by sample and class by class, and ranks played by threads."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle


def norm(vector, floor):
    """The length, or the floor where that is more: 1e-12 of features, 1e-4 of class centers."""
    return max(math.sqrt(sum(float(a) ** 2 for a in vector)), floor)


def gradient_weight(feature):
    """What the gradients of a sample are multiplied by: 1, less for a feature with a root mean square below 0.01."""
    length = math.sqrt(sum(float(a) ** 2 for a in feature))
    return min(1.0, length / (0.01 * math.sqrt(len(feature)))) ** 6


def psi(cosine, m1, m2, m3):
    """(value, derivative) of the margin at one cosine, straight from its definition."""
    theta = math.acos(cosine)
    angle = m1 * theta + m2
    if angle > math.pi:
        turn = math.cos((math.pi - m2) / m1)
        return cosine - turn - 1.0 - m3, 1.0
    return math.cos(angle) - m3, m1 * math.sin(angle) / math.sin(theta)


def oracle(
    features,
    labels,
    weight,
    bias=None,
    *,
    margins=None,
    margin=None,
    scale=64.0,
    rows=None,
    penalty=None,
    smoothing=0.0,
    class_weights=None,
):
    """(loss, dX, dW, dbias) of the mean loss, in plain loops; the gradients of short vectors as the library has them.

    margins: (m1, m2, m3) of the combined margin; margin: instead of it, a function (cosine, norm, label) -> (value,
    derivative by the cosine, derivative by the norm), or a list of one such function per sample. Neither: softmax.
    rows: the only classes in the sum, if given. penalty: a function norm -> (value, derivative), added to the loss of
    each sample. smoothing: the part of the label that is spread over all classes in the sum. class_weights: [C], the
    mean over the samples is weighted with that of the label.
    """
    if margins is not None:

        def margin(cosine, norm, label):
            return (*psi(cosine, *margins), 0.0)

    count, size = features.shape
    rows = range(len(weight)) if rows is None else rows
    d_x, d_w, d_b = np.zeros((count, size)), np.zeros(weight.shape), np.zeros(len(weight))
    loss = 0.0
    shares = np.array([1.0 if class_weights is None else class_weights[label] for label in labels])
    shares /= shares.sum()
    for n in range(count):
        x, label = features[n].astype(np.float64), int(labels[n])
        logit, slope, cosine, by_norm = {}, {}, {}, 0.0
        for c in rows:
            w = weight[c].astype(np.float64)
            product = float(np.dot(x, w))
            if margin is None:
                logit[c], slope[c] = product + (0.0 if bias is None else float(bias[c])), 1.0
                continue
            cosine[c] = product / (norm(x, 1e-12) * norm(w, 1e-4))
            value, derivative = cosine[c], 1.0
            if c == label:
                own = margin[n] if isinstance(margin, list) else margin
                value, derivative, by_norm = own(cosine[c], norm(x, 1e-12), label)
            logit[c], slope[c] = scale * value, scale * derivative
        peak = max(logit.values())
        exponential = {c: math.exp(z - peak) for c, z in logit.items()}
        total = sum(exponential.values())
        # Summed, since the difference of 1 and a probability near 1 has lost its digits.
        others = sum(e for c, e in exponential.items() if c != label)
        spread = smoothing * (logit[label] - sum(logit.values()) / len(logit))
        loss += shares[n] * (math.log(total) + peak - logit[label] + spread)
        for c in rows:
            w = weight[c].astype(np.float64)
            by_logit = (-others if c == label else exponential[c]) / total
            by_logit = shares[n] * (by_logit + smoothing * ((c == label) - 1.0 / len(logit)))
            by_logit *= 1.0 if margin is None else gradient_weight(x)
            d_b[c] += by_logit
            by_cosine = by_logit * slope[c]
            if margin is None:
                d_x[n] += by_cosine * w
                d_w[c] += by_cosine * x
            else:
                x_norm, w_norm = norm(x, 1e-12), norm(w, 1e-4)
                d_x[n] += by_cosine * (w / w_norm - cosine[c] * x / x_norm) / x_norm
                d_w[c] += by_cosine * (x / x_norm - cosine[c] * w / w_norm) / w_norm
                if c == label:
                    d_x[n] += by_logit * scale * by_norm * x / x_norm
        if penalty is not None:
            value, derivative = penalty(norm(x, 1e-12))
            loss += value / count
            d_x[n] += gradient_weight(x) * derivative / count * x / norm(x, 1e-12)
    return loss, d_x, d_w, d_b


class LockstepReducer:
    """Reductions between threads that each play a rank; all of them reduce in the same order."""

    def __init__(self, world_size):
        self._barrier = threading.Barrier(world_size, timeout=20)
        self._slots = [None] * world_size
        self._rank = threading.local()

    def run(self, play):
        """[play(rank) for every rank], at the same time."""

        def start(rank):
            self._rank.value = rank
            return play(rank)

        with ThreadPoolExecutor(len(self._slots)) as pool:
            return list(pool.map(start, range(len(self._slots))))

    def _reduce(self, tensor, combine):
        self._slots[self._rank.value] = tensor.clone()
        self._barrier.wait()
        reduced = combine(paddle.stack(self._slots))
        self._barrier.wait()
        return reduced

    def all_reduce_sum(self, tensor):
        return self._reduce(tensor, lambda stack: stack.sum(axis=0))

    def all_reduce_max(self, tensor):
        return self._reduce(tensor, lambda stack: stack.max(axis=0))

    def all_gather(self, tensor):
        return self._reduce(tensor, lambda stack: stack.flatten(0, 1))


def worst_row_error(found, expected):
    """The largest error of a row relative to that row's own largest number, so that small rows count as large ones."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    size = np.abs(expected).max(axis=1, initial=0.0)
    # The floor is the range of float32, in which the weight of a feature of length 1e-10 is 0.
    return float((np.abs(found - expected).max(axis=1, initial=0.0) / np.maximum(size, 1e-25)).max(initial=0.0))


def relative_error(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    # The floor is well above what comes of e^-709, which Eigen's vectorized exponential returns instead of 0.
    return float(np.abs(found - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 1e-250))

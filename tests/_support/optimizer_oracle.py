"""The named optimizers in float64, number by number, from their definitions."""

from __future__ import annotations

import math

import numpy as np


class OptimizerOracle:
    """One parameter and its state.

    Args:
        name: of `plsc.config.OPTIMIZERS`.
        parameter: an array of any shape; copied.
        momentum: of momentum and lars.
        decay: weight decay.
        decays_vectors: whether parameters of one dimension have weight decay.
        by_row: the lengths of lars are those of rows, not of the whole parameter.
    """

    def __init__(self, name, parameter, *, momentum=0.9, decay=5e-4, decays_vectors=True, by_row=True):
        self.name, self.value = name, parameter.astype(np.float64).copy()
        self.momentum, self.decay = momentum, decay if decays_vectors or parameter.ndim > 1 else 0.0
        self.by_row, self.is_vector = by_row, parameter.ndim <= 1
        self.steps = np.zeros(len(parameter), np.int64)
        self.first, self.second = np.zeros_like(self.value), np.zeros_like(self.value)

    def step(self, gradient, learning_rate, rows=None):
        """Update the rows that are given, or all."""
        rows = range(len(self.value)) if rows is None else rows
        self.steps += 1  # of the run, not of the row
        whole = self._ratio(self.value, gradient)
        for row in rows:
            ratio = self._ratio(self.value[row], gradient[row]) if self.by_row else whole
            for place in np.ndindex(*self.value.shape[1:]):
                self._update((row, *place), float(gradient[(row, *place)]), learning_rate, ratio)

    def _ratio(self, value, gradient):
        if self.is_vector:
            return 1.0
        length = math.sqrt(sum(float(number) ** 2 for number in np.ravel(value)))
        divisor = math.sqrt(sum(float(number) ** 2 for number in np.ravel(gradient))) + self.decay * length
        return 0.001 * length / divisor if length > 0 and divisor > 0 else 1.0

    def _update(self, at, gradient, learning_rate, ratio):
        value, first, second = float(self.value[at]), float(self.first[at]), float(self.second[at])
        if self.name == "sgd":
            value -= learning_rate * (gradient + self.decay * value)
        elif self.name == "momentum":
            first = self.momentum * first + gradient + self.decay * value
            value -= learning_rate * first
        elif self.name == "lars":
            first = self.momentum * first + learning_rate * ratio * (gradient + self.decay * value)
            value -= first
        elif self.name == "lion":
            change = 0.9 * first + 0.1 * gradient
            value -= learning_rate * (math.copysign(1.0, change) * (change != 0) + self.decay * value)
            first = 0.99 * first + 0.01 * gradient
        else:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            steps = int(self.steps[0])
            corrected = first / (1 - 0.9**steps), second / (1 - 0.999**steps)
            value -= learning_rate * (self.decay * value + corrected[0] / (math.sqrt(corrected[1]) + 1e-8))
        self.value[at], self.first[at], self.second[at] = value, first, second

"""Seeds that depend on where a run is, so that a resumed run draws what an unbroken one would."""

from __future__ import annotations

import numpy as np


def derive_seed(*parts: int) -> int:
    """A 31-bit seed from integers of 0 or more; equal parts give equal seeds, others unrelated ones."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)

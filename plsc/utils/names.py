"""What a message says about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_name(name: str, accepted: Iterable[str]) -> str | None:
    """The accepted name that `name` most likely stands for, or None if none is close.

    A name that holds `name` whole comes first ('batch_size' is near 'train_batch_size'), then one of other case,
    then one of similar spelling.
    """
    names = list(accepted)
    by_lower_case = {known.lower(): known for known in reversed(names)}
    lower = name.lower()
    holding = [known for known in by_lower_case if len(lower) > 3 and lower in known]
    near = holding[::-1] or difflib.get_close_matches(lower, by_lower_case, n=1)
    return by_lower_case[near[0]] if near else None


def did_you_mean(name: str, accepted: Iterable[str]) -> str:
    """'did you mean 'x'? ', or '' if no accepted name is close."""
    near = nearest_name(name, accepted)
    return f"did you mean '{near}'? " if near else ""


def one_of(name: str, accepted: Iterable[str]) -> str:
    """Return `name` if it is accepted.

    Raises:
        ValueError: it is not; the message names the nearest accepted name and all of them.
    """
    names = list(accepted)
    if name not in names:
        raise ValueError(f"{did_you_mean(name, names)}accepted: {', '.join(names)}")
    return name

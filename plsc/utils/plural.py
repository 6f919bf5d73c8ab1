"""Numbers of things in messages."""

from __future__ import annotations

import re


def counted(number: int, noun: str) -> str:
    """A number and what it counts: '1 file', '3 files', '0 entries'.

    Args:
        number: 0 or more.
        noun: in the singular, with a regular plural; where it has several words, the last one is the noun.

    Example:
        >>> counted(1, "class folder"), counted(12, "identity"), counted(0, "batch")
        ('1 class folder', '12 identities', '0 batches')
    """
    if number == 1:
        return f"1 {noun}"
    if re.search(r"[^aeiou]y$", noun):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}" + ("es" if re.search(r"(s|x|(?<!epo)ch|sh)$", noun) else "s")

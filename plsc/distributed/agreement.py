"""Work that fails on all ranks together: without it, the others would wait for the rank that has stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from plsc import errors
from plsc.distributed.collectives import Collectives
from plsc.errors import DataError, Interrupted, PLSCError

_Result = TypeVar("_Result")
_Error = TypeVar("_Error", bound=PLSCError | Interrupted)
_Failure = tuple[type[PLSCError], str]


def agree(
    action: Callable[[], _Result], collectives: Collectives, *, error: type[PLSCError], prefix: str = ""
) -> _Result:
    """Run `action` on every rank, and raise on all ranks where it fails on any. Every rank must call this.

    Args:
        action: calls no collective.
        collectives: over the ranks.
        error: the class that an exception which is none of this library's becomes.
        prefix: begins the message.

    Returns:
        What `action` returned on this rank.

    Raises:
        PLSCError: the failure of the first rank that failed, of its own class where the library raised it; on several
            ranks the message names that rank.

    Example:
        >>> sets = agree(lambda: open_verification_sets(config), collectives, error=DataError)
    """
    results: list[_Result] = []
    reason: Exception | None = None
    try:
        results.append(action())
    except Exception as raised:  # whatever it is, the other ranks must learn of it
        reason = raised
    failures = collectives.gather_objects(None if reason is None else _describe(reason, error))
    for rank, failure in enumerate(failures):
        if failure is not None:
            kind, message = failure
            where = f"rank {rank}: " if len(failures) > 1 else ""
            # The message of an error of this library says all; of others, the place where it arose tells more.
            cause = reason.__cause__ if isinstance(reason, PLSCError) else reason
            raise on_all_ranks(kind(f"{prefix}{where}{message}")) from cause
    return results[0]


def require_equal(fact: object, collectives: Collectives, *, what: str) -> None:
    """Compare a fact about data that all ranks must have alike. Every rank must call this.

    Args:
        fact: of this rank's data, as the message shows it; empty or None for none.
        collectives: over the ranks.
        what: the data, and what for.

    Raises:
        DataError: the facts of two ranks differ; the same on every rank.
    """
    found = collectives.gather_objects(fact)
    for rank, other in enumerate(found):
        if other != found[0]:
            error = DataError(
                f"ranks have different {what}: rank 0 has {found[0] or 'none'}, rank {rank} has {other or 'none'}; "
                f"give every rank the same data"
            )
            raise on_all_ranks(error)


def on_all_ranks(error: _Error) -> _Error:
    """Mark an error that every rank raises at the same place."""
    error.is_on_all_ranks = True
    return error


def explain(reason: Exception) -> str:
    """An exception as part of a message: with its class, unless the message tells enough."""
    return str(reason) if isinstance(reason, (PLSCError, OSError)) else f"{type(reason).__name__}: {reason}"


def _describe(reason: Exception, error: type[PLSCError]) -> _Failure:
    # A class of the user's may need more than a message to be constructed.
    if not isinstance(reason, PLSCError) or not type(reason).__module__.startswith("plsc."):
        return error, explain(reason)
    return next(kind for kind in type(reason).__mro__ if kind.__module__ == errors.__name__), str(reason)

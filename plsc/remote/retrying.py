"""Operations on remote files, tried again while the reason may pass, and errors of this library's own for the rest."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from plsc.errors import MissingDependencyError, PLSCError, StorageError
from plsc.utils.locations import without_credentials

log = logging.getLogger("plsc")

_Result = TypeVar("_Result")

ATTEMPTS = 6  # of one operation
SECONDS = 300.0  # after which no further attempt begins
LONGEST_WAIT = 30.0  # seconds between two attempts; the waits double from FIRST_WAIT on, at random
FIRST_WAIT = 0.5

# Errors of the system that say that another attempt would end in the same way.
_LASTING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENAMETOOLONG),
        *(errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOSYS, errno.EMFILE),
    }
)
# Classes of aiohttp and botocore, which need not be installed.
_OF_THE_NETWORK = frozenset(
    {"HTTPClientError", "ConnectionError", "ClientPayloadError", "ClientConnectionError", "ResponseParserError"}
)


def is_transient(error: BaseException) -> bool:
    """Whether the same operation may succeed later: a server that is busy, a connection that broke, a time-out."""
    if isinstance(error, (TimeoutError, ConnectionError, asyncio.TimeoutError)):
        return True
    if isinstance(error, OSError):
        return error.errno not in _LASTING and not isinstance(
            error, (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
        )
    return bool(_OF_THE_NETWORK & {kind.__name__ for kind in type(error).__mro__})


def attempt(action: Callable[[], _Result], url: str, what: str) -> _Result:
    """Call `action`, again while it fails for a transient reason: `ATTEMPTS` times at most, within `SECONDS`.

    Args:
        action: may be called several times.
        url: what it works on, for messages.
        what: what it does, as "cannot be read".

    Raises:
        FileNotFoundError: there is no such file or bucket.
        StorageError: any other failure; says the reason and what to do.
    """
    import tenacity

    def tell(state: tenacity.RetryCallState) -> None:
        reason = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        log.warning(
            "%s %s: %s; attempt %s of %s comes in %.1f s",
            without_credentials(url),
            what,
            explain(reason),
            state.attempt_number + 1,
            ATTEMPTS,
            wait,
        )

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=tenacity.stop_any(tenacity.stop_after_attempt(ATTEMPTS), tenacity.stop_before_delay(SECONDS)),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(action)
    except (PLSCError, FileNotFoundError):
        raise
    except Exception as error:  # the libraries of a protocol have exceptions of their own
        raise storage_error(error, url, what) from None


def storage_error(error: Exception, url: str, what: str) -> StorageError | MissingDependencyError:
    """The error of this library for one of a protocol's library."""
    return StorageError(f"{without_credentials(url)} {what}: {explain(error)}; {_remedy(error)}")


def explain(error: Any) -> str:
    """An exception in one line, without credentials."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        with contextlib.suppress(TypeError, IndexError):
            text += f" ({error.filename})" if error.filename else ""
    elif not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    return without_credentials(text)


def _remedy(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, PermissionError) or "Credentials" in kind:
        return "give credentials that may do so by the environment or a configuration of fsspec (docs/remote.md)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free space on the local disk"
    if is_transient(error):
        return f"the last of {ATTEMPTS} attempts failed so; check the network and the address of the service"
    return "check the address and the options of the protocol (docs/remote.md)"

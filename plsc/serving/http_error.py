"""An exception that becomes an HTTP error reply."""

from __future__ import annotations

from collections.abc import Mapping

from plsc.errors import ServingError


class HTTPError(ServingError):
    """A request that is answered with an error. The middleware writes the reply `{"error": reason}`.

    Args:
        status: HTTP status: 4xx for the client's mistakes, 503 and 504 for the server's limits.
        reason: what was found, what was expected, what to do.
        headers: further headers of the reply.

    Example:
        >>> raise HTTPError(413, "the body has more than 1024 bytes, the limit")
    """

    def __init__(self, status: int, reason: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})

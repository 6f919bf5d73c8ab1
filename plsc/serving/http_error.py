"""A request that is answered with an error of HTTP, and why."""

from __future__ import annotations

from plsc.errors import ServingError


class Refused(ServingError):
    """A request is not served.

    Args:
        status: of HTTP; 4xx for the client's mistakes, 503 and 504 for the server's limits.
        reason: what was found, what was expected, what to do.
        headers: besides the usual ones.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers or {}

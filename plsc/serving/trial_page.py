"""The page at `/` on which a person tries the model in a browser. Programs get the list of endpoints at `/`.

The page is plain HTML, CSS and JavaScript in the folder `page`, loads nothing from elsewhere, and holds nothing of the
model: its script reads `/openapi.json` and calls the endpoints as any other client does. It is therefore answered
without the API key, which the person types into the page.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).with_name("page")
_PATH = "/page/"
_ENTRY = "index.html"
_KINDS = {
    _ENTRY: "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class TrialPage:
    """The files of the page, read once.

    Attributes:
        routes: those of the script and the style; no other name can be asked for.
    """

    def __init__(self) -> None:
        self._files = {name: (_FOLDER / name).read_bytes() for name in _KINDS}
        names = [name for name in _KINDS if name != _ENTRY]
        self.routes = [Route(_PATH + name, self._answer, include_in_schema=False) for name in names]
        self._paths = {route.path for route in self.routes}

    def entry(self) -> Response:
        """The reply to `GET /` of a browser."""
        return self._reply(_ENTRY)

    def is_asked_for(self, method: str, path: str, accept: str) -> bool:
        """Whether a request is answered with a file of the page."""
        return method in ("GET", "HEAD") and (path in self._paths or (path == "/" and prefers_html(accept)))

    async def _answer(self, request: Request) -> Response:
        return self._reply(request.scope["path"].removeprefix(_PATH))

    def _reply(self, name: str) -> Response:
        return Response(self._files[name], headers={**HEADERS, "Content-Type": _KINDS[name]})


def prefers_html(accept: str) -> bool:
    """Whether an Accept header names text/html, as browsers do, and no type that it prefers (RFC 9110, 12.5.1).

    `*/*` names no type: programs send it. JSON of equal weight is preferred.
    """
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weights[kind] = max(weights.get(kind, 0.0), _weight(parameters))
    html = weights.pop("text/html", 0.0)
    return html > weights.get("application/json", 0.0) and html >= max(weights.values(), default=0.0)


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0

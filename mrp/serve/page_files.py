"""The page at `/`: plain HTML, CSS and JavaScript that came with the package, over the same public API.

A strict content security policy goes with it: only the server's own files run, and nothing is asked of anybody else. It
needs no key itself; it asks the person for one when the API wants it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in TYPES and path.name != "index.html")
OPEN = ("/", *(f"/page/{name}" for name in FILES))  # paths that need no key


def add_page(app: FastAPI) -> None:
    """Serve the page; not a part of the API's document."""
    for path in OPEN:
        file = FOLDER / (path.removeprefix("/page/") if path != "/" else "index.html")
        app.add_api_route(path, _sender(file), methods=["GET"], include_in_schema=False)


def _sender(file: Path) -> Callable[[], Awaitable[Response]]:
    content, kind = file.read_bytes(), TYPES[file.suffix]

    async def send() -> Response:
        return Response(content, media_type=kind, headers=POLICY)

    return send

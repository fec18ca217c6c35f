"""Apps that a proxy shows below a path: they say under which URL they would link to themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, url_for
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def item(request: Request) -> PlainTextResponse:
    """Its own URL."""
    return PlainTextResponse(request.url_for("item", name=request.path_params["name"]).path)


starlette = Starlette(routes=[Route("/items/{name}", item)])
flask = Flask(__name__)


@flask.get("/items/<name>", endpoint="item")
def flask_item(name: str) -> str:
    """The same."""
    return url_for("item", name=name)


async def knowing(scope: Any, receive: Any, send: Any) -> None:
    """Starlette's, which has been told itself where it is, as `FastAPI(root_path=...)` is."""
    await starlette({**scope, "root_path": "/shop"} if scope["type"] == "http" else scope, receive, send)


def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What PEP 3333 says of the path."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=iso-8859-1")])
    return [f"{environ['SCRIPT_NAME']}|{environ['PATH_INFO']}|{environ['REQUEST_URI']}".encode("latin-1")]

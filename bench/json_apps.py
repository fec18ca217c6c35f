"""A small JSON response by Starlette (`starlette`), and by FastAPI with a response model (`fastapi`)."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Item(BaseModel):
    """The response."""

    name: str
    price: float
    tags: list[str]


async def item(request: Request) -> JSONResponse:
    """Return the response, serialized by hand."""
    return JSONResponse({"name": "lamp", "price": 9.5, "tags": ["home", "light"]})


starlette = Starlette(routes=[Route("/", item)])
fastapi = FastAPI(openapi_url=None)


@fastapi.get("/")
async def modelled() -> Item:
    """Return an item, checked and serialized by its model."""
    return Item(name="lamp", price=9.5, tags=["home", "light"])

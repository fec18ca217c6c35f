"""A small JSON answer by Starlette (`starlette`), and by FastAPI with a response model (`fastapi`)."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Item(BaseModel):
    """What is answered."""

    name: str
    price: float
    tags: list[str]


async def item(request: Request) -> JSONResponse:
    """The same by hand."""
    return JSONResponse({"name": "lamp", "price": 9.5, "tags": ["home", "light"]})


starlette = Starlette(routes=[Route("/", item)])
fastapi = FastAPI(openapi_url=None)


@fastapi.get("/")
async def modelled() -> Item:
    """An item, checked and serialized by its model."""
    return Item(name="lamp", price=9.5, tags=["home", "light"])

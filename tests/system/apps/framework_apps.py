"""One app of each framework. Each answers `GET /` and `POST /echo`."""

from __future__ import annotations

from typing import Any

import bottle
import falcon
import falcon.asgi
import flask
import quart
from asgiref.wsgi import WsgiToAsgi
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from litestar import Litestar, MediaType
from litestar import Request as LitestarRequest
from litestar import get as litestar_get
from litestar import post as litestar_post
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.routing import Route
from werkzeug.middleware.proxy_fix import ProxyFix
from whitenoise import WhiteNoise

# ASGI

fastapi_app = FastAPI()


@fastapi_app.get("/", response_class=PlainTextResponse)
async def fastapi_index() -> str:
    return "hello"


@fastapi_app.post("/echo")
async def fastapi_echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


async def starlette_index(request: StarletteRequest) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def starlette_echo(request: StarletteRequest) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


starlette_app = Starlette(routes=[Route("/", starlette_index), Route("/echo", starlette_echo, methods=["POST"])])
starlette_gzip_app = GZipMiddleware(starlette_app)


@litestar_get("/", media_type=MediaType.TEXT)
async def litestar_index() -> str:
    return "hello"


@litestar_post("/echo", media_type=MediaType.TEXT, status_code=200)
async def litestar_echo(request: LitestarRequest[Any, Any, Any]) -> bytes:
    return await request.body()


litestar_app = Litestar([litestar_index, litestar_echo], logging_config=None)  # its default starts a thread

quart_app = quart.Quart("framework_apps")


@quart_app.get("/")
async def quart_index() -> str:
    return "hello"


@quart_app.post("/echo")
async def quart_echo() -> Any:
    return await quart.request.get_data()


class Resource:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.text = "hello"

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        response.data = request.bounded_stream.read()


class AsyncResource:
    async def on_get(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.text = "hello"

    async def on_post(self, request: falcon.asgi.Request, response: falcon.asgi.Response) -> None:
        response.data = await request.stream.read()


falcon_asgi_app = falcon.asgi.App()
falcon_asgi_app.add_route("/", AsyncResource())
falcon_asgi_app.add_route("/echo", AsyncResource())

# WSGI

falcon_wsgi_app = falcon.App()
falcon_wsgi_app.add_route("/", Resource())
falcon_wsgi_app.add_route("/echo", Resource())

flask_app = flask.Flask("framework_apps")


@flask_app.get("/")
def flask_index() -> str:
    return "hello"


@flask_app.post("/echo")
def flask_echo() -> bytes:
    return flask.request.get_data()


flask_behind_proxy = ProxyFix(flask_app)
flask_as_asgi = WsgiToAsgi(flask_app)

bottle_app = bottle.Bottle()


@bottle_app.get("/")  # type: ignore[untyped-decorator]
def bottle_index() -> str:
    return "hello"


@bottle_app.post("/echo")  # type: ignore[untyped-decorator]
def bottle_echo() -> Any:
    return bottle.request.body.read()


bottle_files_app = WhiteNoise(bottle_app)

# Django, both ways


def django_index(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def django_echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


urlpatterns = [path("", django_index), path("echo", django_echo)]
settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of a test")
django_wsgi_app = get_wsgi_application()
django_asgi_app = get_asgi_application()

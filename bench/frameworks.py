"""The two frameworks that most WSGI apps are written with, answering `hello`: what they cost is part of every request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Start = Callable[..., Any]


def _flask() -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
    from flask import Flask

    app = Flask(__name__)
    app.add_url_rule("/", "hello", lambda: "hello")
    return app


def _django() -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def hello(request: HttpRequest) -> HttpResponse:
        return HttpResponse("hello")

    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=(path("", hello),),
        SECRET_KEY="bench",
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    )
    return get_wsgi_application()


def __getattr__(name: str) -> Any:
    """`flask` and `django`: each is made when a server asks for it, and the other needn't be installed."""
    makers = {"flask": _flask, "django": _django}
    if name not in makers:
        raise AttributeError(name)
    made = globals()[name] = makers[name]()
    return made

"""A Django application that answers `hello`, so that each request includes the cost of the framework."""

from __future__ import annotations

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
app = get_wsgi_application()

"""A Django project in one file. `application` is its usual WSGI entry point.

Run it:  cluster2 run examples/django_app.py:application --workers 2
Try it:  curl http://127.0.0.1:3000/
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only for the example"),
)


def index(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "hello from Django", "worker": os.getpid()})


urlpatterns = [path("", index)]
application = get_wsgi_application()

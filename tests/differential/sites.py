"""The sites that are served by cluster2 and by gunicorn: Flask, Django, and plain WSGI. Each view shows one thing."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import django.http
import flask
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path, re_path
from werkzeug.middleware.proxy_fix import ProxyFix

HERE = Path(__file__).parent
Environ = dict[str, Any]

logging.getLogger("django.request").setLevel("CRITICAL")  # errors are raised on purpose here


def digest(data: bytes) -> list[object]:
    """A body, told in short."""
    return [len(data), hashlib.sha256(data).hexdigest()]


class Interrupted(Exception):
    """What a view raises on purpose."""


# Flask

flask_site = flask.Flask("differential")
flask_site.logger.setLevel("CRITICAL")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@flask_site.route("/echo", methods=METHODS)
@flask_site.route("/echo/<path:rest>", methods=METHODS)
def flask_echo(rest: str = "") -> Any:
    """All that Flask makes of a request."""
    request = flask.request
    files = {
        name: [[each.filename, each.mimetype, *digest(each.read())] for each in request.files.getlist(name)]
        for name in request.files
    }
    return flask.jsonify(
        method=request.method,
        rest=rest,
        path=request.path,
        full_path=request.full_path,
        url=request.url,
        script_root=request.script_root,
        host=request.host,
        remote_addr=request.remote_addr,
        args=request.args.to_dict(flat=False),
        form=request.form.to_dict(flat=False),
        files=files,
        cookies=request.cookies.to_dict(flat=False),
        headers=sorted((name.lower(), value) for name, value in request.headers.items()),
        length=request.content_length,
        data=digest(request.get_data()),
    )


@flask_site.route("/status/<int:code>", methods=METHODS)
def flask_status(code: int) -> Any:
    """An answer of that status: empty where it must be."""
    return flask.Response("" if code in (204, 304) else "text", status=code, headers={"ETag": '"x"'})


@flask_site.route("/redirect")
def flask_redirect() -> Any:
    """A redirect, with umlauts."""
    return flask.redirect("/echo/zürich?q=a b")


@flask_site.route("/cookies")
def flask_cookies() -> Any:
    """Several cookies."""
    response = flask.Response("set")
    response.set_cookie("one", "1", path="/", httponly=True)
    response.set_cookie("two", "zwei, drei; vier")
    response.delete_cookie("three")
    del response.headers["Set-Cookie"]  # the deletion's date is that of the clock
    response.headers.extend([("Set-Cookie", "one=1; Path=/"), ("Set-Cookie", 'two="a b"')])
    return response


def pieces(count: int, *, fails: bool = False) -> Iterator[str]:
    """A body in pieces, one of them empty."""
    for number in range(count):
        yield f"piece {number}\n" if number != 1 else ""
    if fails:
        raise Interrupted


@flask_site.route("/stream", methods=METHODS)
def flask_stream() -> Any:
    """A body in pieces, of no known length."""
    return flask.Response(pieces(5), mimetype="text/plain")


@flask_site.route("/interrupted")
def flask_interrupted() -> Any:
    """A body whose generator raises in the middle."""
    return flask.Response(pieces(3, fails=True), mimetype="text/plain")


@flask_site.route("/error", methods=METHODS)
def flask_error() -> Any:
    """An error before anything is sent."""
    raise Interrupted


@flask_site.route("/file")
def flask_file() -> Any:
    """A file, by `wsgi.file_wrapper`; ranges and conditions."""
    return flask.send_file(HERE / "sites.py", mimetype="text/plain", conditional=True, max_age=60)


@flask_site.route("/reads", methods=METHODS)
def flask_reads() -> Any:
    """The body, read in pieces while the answer is sent."""

    def counted() -> Iterator[bytes]:
        while data := stream.read(10_000):
            yield b"%d\n" % len(data)

    stream = flask.request.stream
    return flask.Response(flask.stream_with_context(counted()), mimetype="text/plain")


@flask_site.route("/unread", methods=METHODS)
def flask_unread() -> Any:
    """An answer that doesn't care for the body."""
    return "unread"


behind_a_proxy = ProxyFix(flask_site.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)

# Django


def django_echo(request: django.http.HttpRequest, rest: str = "") -> django.http.HttpResponse:
    """All that Django makes of a request."""
    files = {
        name: [[each.name, each.content_type, *digest(each.read())] for each in request.FILES.getlist(name)]
        for name in request.FILES
    }
    form = dict(request.POST.lists())
    return django.http.JsonResponse(
        {
            "method": request.method,
            "rest": rest,
            "path": request.path,
            "path_info": request.path_info,
            "full_path": request.get_full_path(),
            "url": request.build_absolute_uri(),
            "host": request.get_host(),
            "secure": request.is_secure(),
            "args": dict(request.GET.lists()),
            "form": form,
            "files": files,
            "cookies": request.COOKIES,
            "headers": sorted((name.lower(), value) for name, value in request.headers.items()),
            "length": request.META.get("CONTENT_LENGTH"),
            "body": None if form or files else digest(request.body),
        }
    )


def django_status(request: django.http.HttpRequest, code: int) -> django.http.HttpResponse:
    """An answer of that status."""
    return django.http.HttpResponse(b"" if code in (204, 304) else b"text", status=code, headers={"ETag": '"x"'})


def django_redirect(request: django.http.HttpRequest) -> django.http.HttpResponse:
    """A redirect, with umlauts."""
    return django.http.HttpResponseRedirect("/echo/zürich?q=a b")


def django_cookies(request: django.http.HttpRequest) -> django.http.HttpResponse:
    """Several cookies."""
    response = django.http.HttpResponse("set")
    response.set_cookie("one", "1", httponly=True)
    response.set_cookie("two", "zwei, drei; vier")
    return response


def django_stream(request: django.http.HttpRequest) -> django.http.StreamingHttpResponse:
    """A body in pieces."""
    return django.http.StreamingHttpResponse(pieces(5), content_type="text/plain")


def django_interrupted(request: django.http.HttpRequest) -> django.http.StreamingHttpResponse:
    """A body whose generator raises in the middle."""
    return django.http.StreamingHttpResponse(pieces(3, fails=True), content_type="text/plain")


def django_error(request: django.http.HttpRequest) -> django.http.HttpResponse:
    """An error before anything is sent."""
    raise Interrupted


def django_file(request: django.http.HttpRequest) -> django.http.FileResponse:
    """A file, by `wsgi.file_wrapper`."""
    return django.http.FileResponse((HERE / "sites.py").open("rb"))


def django_lines(request: django.http.HttpRequest) -> django.http.HttpResponse:
    """The body, read line by line."""
    return django.http.HttpResponse(b"".join(b"%d\n" % len(line) for line in request))


def django_unread(request: django.http.HttpRequest) -> django.http.HttpResponse:
    """An answer that doesn't care for the body."""
    return django.http.HttpResponse("unread")


def django_slashed(request: django.http.HttpRequest) -> django.http.HttpResponse:
    """A path that ends with a slash: without it, Django redirects."""
    return django.http.HttpResponse("slashed")


urlpatterns = [
    re_path("^echo(?:/(?P<rest>.*))?$", django_echo),
    path("status/<int:code>", django_status),
    path("redirect", django_redirect),
    path("cookies", django_cookies),
    path("stream", django_stream),
    path("interrupted", django_interrupted),
    path("error", django_error),
    path("file", django_file),
    path("reads", django_lines),
    path("unread", django_unread),
    path("slashed/", django_slashed),
]
settings.configure(
    ALLOWED_HOSTS=["test", "elsewhere.example", "127.0.0.1", ".[::1]"],
    DATA_UPLOAD_MAX_MEMORY_SIZE=10_000_000,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.http.ConditionalGetMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
)
django_site = get_wsgi_application()

# Plain WSGI

NAMES = [
    *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE", "CONTENT_LENGTH"),
    *("SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "REMOTE_ADDR"),
    *("wsgi.version", "wsgi.url_scheme", "wsgi.run_once"),
]
"""What PEP 3333 promises, and what all servers add."""
Start = Callable[..., Callable[[bytes], object]]


class Site:
    """Views by the first part of the path."""

    def __init__(self) -> None:
        self.closed = 0

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        name = environ["PATH_INFO"].split("/")[1]
        view = getattr(self, f"view_{name}")
        found: Iterable[bytes] = view(environ, start_response)
        return found

    def view_environ(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        shown = {name: value for name, value in environ.items() if name in NAMES or name.startswith("HTTP_")}
        shown["types"] = sorted({type(value).__name__ for name, value in environ.items() if name.isupper()})
        body = json.dumps(shown, sort_keys=True, indent=1).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def view_read(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Reads in all ways that there are; what is told is what each returned."""
        source = environ["wsgi.input"]
        told = [source.read(0), source.read(3), source.readline(), source.readline(4)]
        told += [next(iter(source), b"no line"), source.read(5), source.readlines(), source.read(), source.read(7)]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr(told).encode()]

    def view_all(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [json.dumps(digest(environ["wsgi.input"].read())).encode()]

    def view_write(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"written\n")
        write(b"")
        return [b"returned\n"]

    def view_once(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """One piece, and no length."""
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"one piece"]

    def view_nothing(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    def view_headers(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        headers = [("X-Twice", "1"), ("Set-Cookie", "a=1"), ("x-TWICE", "2"), ("Set-Cookie", "b=2")]
        start_response("299 Quite Fine", [*headers, ("X-Latin", "z\xfcrich"), ("Content-Length", "0")])
        return []

    def view_replaced(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Changes its mind before anything was sent."""
        start_response("200 OK", [("X-First", "1")])
        try:
            raise Interrupted
        except Interrupted as error:
            start_response("503 Service Unavailable", [("X-Second", "2")], (type(error), error, error.__traceback__))
        return [b"replaced"]

    def view_late(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Changes its mind too late: start_response raises what it was given, and the answer is cut off."""
        write = start_response("200 OK", [("X-First", "1")])
        write(b"begun")
        try:
            raise Interrupted
        except Interrupted as error:
            start_response("503 Service Unavailable", [], (type(error), error, error.__traceback__))
        return [b"replaced"]

    def view_lazy(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Calls start_response when its first piece is asked for."""
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"lazy"

    def view_silent(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Never calls start_response."""
        return [b"silent"]

    def view_twice(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Calls start_response twice without a reason."""
        start_response("200 OK", [])
        start_response("200 OK", [])
        return [b"twice"]

    def view_text(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Yields text."""
        start_response("200 OK", [("Content-Type", "text/plain")])
        return ["text"]  # type: ignore[list-item]

    def view_short(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Promises more than it sends."""
        start_response("200 OK", [("Content-Length", "100")])
        return [b"short"]

    def view_long(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Sends more than it promised."""
        start_response("200 OK", [("Content-Length", "4")])
        return [b"long", b"er"]

    def view_raises(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        raise Interrupted

    def view_halfway(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"half"
        raise Interrupted

    def view_wrapped(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """A file from its middle, by `wsgi.file_wrapper`."""
        file = (HERE / "sites.py").open("rb")
        file.seek(100)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "1000")])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file, 300)
        return wrapped

    def view_closes(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """Its answer counts how often answers before it were closed."""
        site = self

        class Answer:
            def __iter__(self) -> Iterator[bytes]:
                yield b"%d" % site.closed

            def close(self) -> None:
                site.closed += 1

        start_response("200 OK", [])
        return Answer()


plain_site = Site()

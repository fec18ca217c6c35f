"""What counts as an app, of which kind, and what is said of what doesn't."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cluster2
from cluster2.engines.base import Interface
from cluster2.errors import AppError
from cluster2.runtime.app_loader import load

pytestmark = pytest.mark.usefixtures("own_process")

# Of all kinds


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def asgi_sync(scope: Any, receive: Any, send: Any) -> Any: ...


def wsgi(environ: Any, start_response: Any) -> Any: ...


async def rsgi(scope: Any, protocol: Any) -> None: ...


async def stream(reader: Any, writer: Any) -> None: ...


async def stream_with_options(reader: Any, writer: Any, limit: int = 3, *, debug: bool = False) -> None: ...


class Echo(asyncio.Protocol):
    pass


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def method(self, scope: Any, receive: Any, send: Any) -> None: ...


class WsgiObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class StreamObject:
    async def __call__(self, reader: Any, writer: Any) -> None: ...


class RsgiObject:
    def __rsgi__(self, scope: Any, protocol: Any) -> Any: ...

    def __call__(self, *arguments: Any) -> Any: ...


class WsgiClass:
    """PEP 3333 allows a class: called, it is the response."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...


def traced(app: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(app)
    async def inner(*arguments: Any, **options: Any) -> Any:
        return await app(*arguments, **options)

    return inner


def passing(app: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that isn't async itself."""

    @functools.wraps(app)
    def inner(*arguments: Any, **options: Any) -> Any:
        return app(*arguments, **options)

    return inner


def adapting(app: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that changes what is taken."""

    @functools.wraps(app)
    def inner(environ: Any, start_response: Any) -> Any:
        return app(environ)

    return inner


async def view(request: Any) -> Any: ...


class EchoWith(asyncio.Protocol):
    def __init__(self, database: Any) -> None: ...


def makes_protocols() -> asyncio.Protocol:
    return Echo()


def makes_something() -> NoSuchName: ...  # type: ignore[name-defined]  # noqa: F821


def rsgi_sync(scope: Any, protocol: Any) -> Any: ...


def stream_sync(reader: Any, writer: Any) -> Any: ...


async def wsgi_async(environ: Any, start_response: Any) -> Any: ...


class AsgiClass:
    """Called, it is what is awaited."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None: ...

    def __await__(self) -> Any: ...


class Asgi2:
    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


def asgi2(scope: Any) -> Any: ...


class Derived(AsgiObject):
    pass


class Rsgi(RsgiObject):
    def __init__(self, settings: Any) -> None: ...


class Itself:
    """Wraps itself."""

    def __init__(self) -> None:
        self.__wrapped__ = self

    def __call__(self, a: Any, b: Any) -> Any: ...


def opaque(*arguments: Any) -> Any: ...


def no_argument() -> Any: ...


def four(a: Any, b: Any, c: Any, d: Any) -> Any: ...


async def with_settings(settings: Any, scope: Any, receive: Any, send: Any) -> None: ...


def fastapi_app() -> Any:
    fastapi = pytest.importorskip("fastapi")
    return fastapi.FastAPI()


def starlette_app() -> Any:
    applications = pytest.importorskip("starlette.applications")
    middleware = pytest.importorskip("starlette.middleware.gzip")
    return middleware.GZipMiddleware(applications.Starlette())


def flask_app() -> Any:
    flask = pytest.importorskip("flask")
    return flask.Flask("flask_app")


def django(kind: str) -> Any:
    conf = pytest.importorskip("django.conf")
    if not conf.settings.configured:
        conf.settings.configure()
    core = pytest.importorskip(f"django.core.{kind}")
    return getattr(core, f"get_{kind}_application")()


@pytest.mark.parametrize(
    ("app", "interface"),
    [
        (asgi, Interface.ASGI),
        (asgi_sync, Interface.ASGI),
        (AsgiObject(), Interface.ASGI),
        (AsgiObject().method, Interface.ASGI),
        (functools.partial(with_settings, {}), Interface.ASGI),
        (traced(asgi), Interface.ASGI),
        (passing(asgi), Interface.ASGI),
        (AsgiClass, Interface.ASGI),
        (wsgi, Interface.WSGI),
        (WsgiObject(), Interface.WSGI),
        (WsgiClass, Interface.WSGI),
        (lambda environ, start_response: [], Interface.WSGI),
        (adapting(view), Interface.WSGI),
        (passing(WsgiObject()), Interface.WSGI),
        (Itself(), Interface.WSGI),
        (rsgi, Interface.RSGI),
        (rsgi_sync, Interface.RSGI),
        (passing(rsgi), Interface.RSGI),
        (RsgiObject(), Interface.RSGI),
        (stream, Interface.TCP),
        (stream_with_options, Interface.TCP),
        (StreamObject(), Interface.TCP),
        (traced(stream), Interface.TCP),
        (passing(stream), Interface.TCP),
        (passing(traced(stream)), Interface.TCP),
        (Echo, Interface.TCP),
        (EchoWith, Interface.TCP),
        (functools.partial(EchoWith, None), Interface.TCP),
        (makes_protocols, Interface.TCP),
    ],
)
def test_by_signature(app: object, interface: Interface) -> None:
    """An app's interface is read off its signature: functions, objects, methods, partials, wrappers, classes."""
    found = load(app)
    assert found.interface is interface
    assert found.call is app


@pytest.mark.parametrize(
    ("make", "interface"),
    [
        (fastapi_app, Interface.ASGI),
        (starlette_app, Interface.ASGI),
        (flask_app, Interface.WSGI),
        (functools.partial(django, "asgi"), Interface.ASGI),
        (functools.partial(django, "wsgi"), Interface.WSGI),
    ],
    ids=["FastAPI", "Starlette middleware", "Flask", "Django asgi", "Django wsgi"],
)
def test_frameworks(make: Callable[[], Any], interface: Interface) -> None:
    """The apps of real frameworks are told apart, given as they are or made by a factory."""
    assert load(make()).interface is interface
    assert load(make, factory=True).interface is interface


@pytest.mark.parametrize(
    ("declare", "interface"),
    [
        (cluster2.asgi, Interface.ASGI),
        (cluster2.wsgi, Interface.WSGI),
        (cluster2.rsgi, Interface.RSGI),
        (cluster2.tcp, Interface.TCP),
    ],
)
def test_declared(declare: Callable[..., Any], interface: Interface) -> None:
    """What the author says counts, whatever the signature looks like; the app inside is what is called."""
    found = load(declare(opaque))
    assert (found.interface, found.call, found.label) == (interface, opaque, "opaque")


@pytest.mark.parametrize(
    ("app", "says"),
    [
        (3, "int is an int, which can't be called; name an ASGI or WSGI app, or a TCP handler"),
        (None, "NoneType is a NoneType, which can't be called"),
        (no_argument, "no_argument takes no argument: if it is a factory that returns the app, add --factory"),
        (
            four,
            r"four looks like no app that cluster2 knows \(it takes 4 arguments\); say what it is by cluster2\.asgi",
        ),
        (opaque, r"opaque looks like no app .*\(its signature doesn't say what it takes\); say what .*cluster2\.asgi"),
        (dict.fromkeys, "looks like no app"),
        (view, r"view looks like no app that cluster2 knows \(it takes 1 argument\)"),
        (Asgi2, "Asgi2 takes `scope` alone, as ASGI 2 had it; wrap it in asgiref.compatibility.guarantee_single"),
        (asgi2, "asgi2 takes `scope` alone, as ASGI 2 had it"),
        (AsgiObject, "AsgiObject is a class, not an app; make an object of it, and name that"),
        (Derived, "Derived is a class, not an app"),
        (Rsgi, "Rsgi is a class, not an app"),
        (wsgi_async, "wsgi_async is async, which a WSGI app can't be; make it a plain function, or an ASGI app"),
        (
            stream_sync,
            "stream_sync looks like a TCP handler, but isn't async; make it `async def`, or say cluster2.tcp",
        ),
        (
            makes_something,
            "makes_something takes no argument: .* if it makes an asyncio.Protocol, say so by cluster2.tcp",
        ),
        (cluster2.wsgi(3), "int wraps an int, which can't be called"),  # type: ignore[arg-type]
    ],
)
def test_no_app(app: object, says: str) -> None:
    """What is no app is refused in one line that names it and the way out."""
    with pytest.raises(AppError, match=says) as raised:
        load(app)
    assert "\n" not in raised.value.message
    assert raised.value.detail == ""


# By text


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write modules into the directory that is first on the import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str, name: str = "site_of_test") -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


SOURCE = "def app(environ, start_response): ...\nclass api:\n    v1 = staticmethod(app)\nmake = lambda: app\n"


@pytest.mark.parametrize("target", ["site_of_test:app", "site_of_test:api.v1", "site_of_test.py:app"])
def test_by_text(module: Callable[..., None], target: str) -> None:
    """`module:attr`, an attribute of an attribute, `path/file.py:attr`; the label is what the user wrote."""
    module(SOURCE)
    found = load(target)
    assert found.interface is Interface.WSGI
    assert found.label == target


def test_a_module_in_a_package(module: Callable[..., None]) -> None:
    """Dotted modules are imported."""
    module(SOURCE, "package_of_test.inner.web")
    assert load("package_of_test.inner.web:app").interface is Interface.WSGI


def test_a_factory_by_text(module: Callable[..., None]) -> None:
    """With `factory` the attribute is called, and what it returns is the app."""
    module(SOURCE)
    assert load("site_of_test:make", factory=True).interface is Interface.WSGI


def test_a_file_can_import_its_neighbours(module: Callable[..., None]) -> None:
    """The directory of a file is on the import path while it is imported, and afterwards."""
    module("import neighbour_of_test as n\ndef app(a, b): ...\n", "below.site_of_test")
    module("", "below.neighbour_of_test")
    assert load("below/site_of_test.py:app").interface is Interface.WSGI


def test_two_apps_in_one_file(module: Callable[..., None]) -> None:
    """A file that holds several apps is imported once."""
    module("def one(a, b): ...\nasync def two(scope, receive, send): ...\n")
    one, two = load("site_of_test.py:one"), load("site_of_test.py:two")
    assert (one.interface, two.interface) == (Interface.WSGI, Interface.ASGI)
    assert one.call.__globals__ is two.call.__globals__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("below/site_of_test", "'below/site_of_test' names no app: write module:attribute or path/file.py:attribute"),
        (".site_of_test:app", "names no app"),
        ("site_of_test:make(", r"'site_of_test:make\(' names no app"),
        ("site_of_test:make(app)", "with literals as arguments"),
        ("site_of_test:make(**{})", "with literals as arguments"),
        ("site_of_test:make()()", "with literals as arguments"),
        (":app", "':app' names no app"),
        ("site_of_test:", "'site_of_test:' names no app"),
        ("", "'' names no app"),
        (
            "no_such_module:app",
            r"there is no module 'no_such_module' \(wanted by 'no_such_module:app'\); it is searched",
        ),
        ("no_such.inner:app", "there is no module 'no_such'"),
        ("site_of_test.inner:app", r"there is no module 'site_of_test\.inner'"),
        ("site_of_test:absent", r"site_of_test has no attribute 'absent' \(wanted by 'site_of_test:absent'\)"),
        ("site_of_test:api.absent", r"site_of_test has no attribute 'api\.absent'"),
        ("absent.py:app", r"there is no file 'absent\.py' \(looked for in "),
        ("json.py:app", r"json\.py can't be imported: a module named 'json' is loaded already; rename the file"),
    ],
)
def test_bad_targets(module: Callable[..., None], target: str, says: str) -> None:
    """A target that leads nowhere is refused in one line, without a traceback."""
    module(SOURCE)
    module(SOURCE, "json")
    sys.modules.pop("json.py", None)
    with pytest.raises(AppError, match=says) as raised:
        load(target)
    assert "\n" not in raised.value.message
    assert raised.value.detail == ""


@pytest.mark.parametrize("target", ["site_of_test", "site_of_test.py", "package_of_test.site_of_test"])
@pytest.mark.parametrize("name", ["app", "application"])
def test_no_attribute_is_named(module: Callable[..., None], target: str, name: str) -> None:
    """`proj.wsgi` alone means its `application` or `app`, as with gunicorn; the label names it."""
    module(f"def {name}(environ, start_response): ...\n", target.removesuffix(".py"))
    assert load(target).label == f"{target}:{name}"


def test_two_usual_names(module: Callable[..., None]) -> None:
    """`application` and `app` may be the same object; if they differ one has to be named."""
    module("def app(a, b): ...\napplication = app\n")
    assert load("site_of_test").label == "site_of_test:application"
    module("def app(a, b): ...\ndef application(a, b): ...\n", "other_of_test")
    with pytest.raises(AppError, match="other_of_test has application and app, which differ: name one"):
        load("other_of_test")


def test_no_usual_name(module: Callable[..., None]) -> None:
    """A module without them is refused; a factory in it is pointed at, and a submodule named `app` is no app."""
    module("def create_app(): ...\n")
    with pytest.raises(AppError, match=r"has no application or app; is it site_of_test:create_app\(\) \?"):
        load("site_of_test")
    module("from . import app\n", "package_of_test.__init__")
    module("", "package_of_test.app")
    with pytest.raises(AppError, match="package_of_test has no application or app"):
        load("package_of_test")
    with pytest.raises(AppError, match="package_of_test has no create_app or make_app"):
        load("package_of_test", factory=True)


def test_a_usual_factory(module: Callable[..., None]) -> None:
    """With `factory`, a module alone means its `create_app` or `make_app`."""
    module("def create_app():\n    return lambda environ, start_response: None\n")
    assert load("site_of_test", factory=True).label == "site_of_test:create_app"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("create()", "() {}"),
        ("create('a:b', 2)", "('a:b', 2) {}"),
        ("create(debug=True, names=['(', ')'])", "() {'debug': True, 'names': ['(', ')']}"),
        ("inner.create(-1)", "(-1,) {}"),
    ],
)
@pytest.mark.parametrize("source", ["site_of_test", "site_of_test.py", "dir (copy)/site_of_test.py"])
def test_a_factory_is_called(module: Callable[..., None], source: str, call: str, told: str) -> None:
    """`module:create_app("prod", debug=True)` is what that returns, as with gunicorn."""
    module(
        "def create(*arguments, **keywords):\n"
        "    def app(environ, start_response): ...\n"
        "    app.told = f'{arguments} {keywords}'\n"
        "    return app\n"
        "class inner:\n    create = staticmethod(create)\n",
        source.removesuffix(".py"),
    )
    found = load(f"{source}:{call}")
    assert found.call.told == told  # type: ignore[attr-defined]
    assert found.label == f"{source}:{call}"


def test_a_call_that_is_no_factory(module: Callable[..., None]) -> None:
    """A call beside --factory, of what can't be called, and one that raises, are refused in one line."""
    module("app = 3\ndef make():\n    raise LookupError('no such tenant')\n")
    with pytest.raises(AppError, match=r"calls the factory already; leave --factory out"):
        load("site_of_test:make()", factory=True)
    with pytest.raises(
        AppError, match=r"site_of_test:app is an int, which can't be called as a factory; leave \(\) out"
    ):
        load("site_of_test:app()")
    with pytest.raises(AppError, match="the factory site_of_test:make raised LookupError: no such tenant") as raised:
        load("site_of_test:make()")
    assert "line 3, in make" in raised.value.detail


@pytest.mark.parametrize(("target", "factory"), [("make", True), ("make()", False), ("plain", True), ("make", False)])
@pytest.mark.filterwarnings("error")
def test_an_async_factory(module: Callable[..., None], target: str, factory: bool) -> None:
    """A factory that has to be awaited is refused with the way out: no loop runs before the fork."""
    module("async def make(): ...\ndef plain():\n    return make()\n")
    with pytest.raises(
        AppError, match="is async.* make it a plain function: no event loop runs while the app is loaded"
    ):
        load(f"site_of_test:{target}", factory=factory)


@pytest.mark.parametrize("target", ["package_of_test/web.py:app", "package_of_test/inner/web.py:app"])
def test_a_file_in_a_package(module: Callable[..., None], target: str) -> None:
    """It is a module of its package: relative imports work, it is loaded once, and it can import its neighbours plainly."""
    name = target.partition(".")[0].replace("/", ".")
    package = name.rpartition(".")[0]
    module("", "package_of_test.__init__")
    module("", "package_of_test.inner.__init__")
    module("from . import neighbour_of_test\nimport plain_of_test\ndef app(a, b): ...\n", name)
    module(f"from {package} import web\n", f"{package}.neighbour_of_test")
    module("", f"{package}.plain_of_test")
    assert load(target).call.__module__ == name  # type: ignore[attr-defined]
    assert load(f"{name}:app").call is load(target).call


def test_a_package_by_its_file(module: Callable[..., None]) -> None:
    """`package/__init__.py:app` is the package."""
    module("def app(a, b): ...\n", "package_of_test.__init__")
    assert load("package_of_test/__init__.py:app").call.__module__ == "package_of_test"  # type: ignore[attr-defined]


def test_a_relative_import_without_a_package(module: Callable[..., None]) -> None:
    """The way out is in the line."""
    module("from . import neighbour\n", "below.site_of_test")
    with pytest.raises(AppError, match="no known parent package; put an __init__.py beside it, or name it as package"):
        load("below/site_of_test.py:app")


def test_a_package_whose_name_is_taken(module: Callable[..., None]) -> None:
    """A directory that has the name of a package that is loaded already is no other package."""
    module("", "json.__init__")
    module("def app(a, b): ...\n", "json.web")
    with pytest.raises(AppError, match="a module named 'json' is loaded already; rename"):
        load("json/web.py:app")


BROKEN = {
    "KeyError": ("import os\nos.environ['NO_SUCH_SECRET']\n", "KeyError: 'NO_SUCH_SECRET'", "line 2, in <module>"),
    "SystemExit": ("raise SystemExit(0)\n", "it raised SystemExit: 0", "line 1, in <module>"),
    "several lines": ("raise ValueError('one\\ntwo')\n", "it raised ValueError: one", "ValueError: one\ntwo"),
    "no text": ("raise ValueError\n", "it raised ValueError", "line 1, in <module>"),
    "a long text": ("raise ValueError('x' * 100_000)\n", "it raised ValueError: xxx", "line 1, in <module>"),
    "syntax": ("\ndef app(:\n", "it raised SyntaxError: invalid syntax", "line 2"),
    "missing library": ("import no_such_library\n", "No module named 'no_such_library'", "line 1, in <module>"),
    "deep": ("def f():\n    g()\ndef g():\n    1 / 0\nf()\n", "ZeroDivisionError", "line 4, in g"),
}


@pytest.mark.parametrize("target", ["site_of_test:app", "site_of_test.py:app"])
@pytest.mark.parametrize(("text", "says", "detail"), BROKEN.values(), ids=BROKEN)
def test_broken_modules(module: Callable[..., None], target: str, text: str, says: str, detail: str) -> None:
    """An import that raises: the error in one line of bounded length, and a traceback that starts at the app's line."""
    module(text)
    with pytest.raises(AppError) as raised:
        load(target)
    message, trace = raised.value.message, raised.value.detail
    assert message.startswith(f"{target.partition(':')[0]} can't be imported: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < 1000
    assert detail in trace
    assert "site_of_test.py" in trace
    for ours in ("cluster2/runtime/app_loader.py", "importlib"):
        assert ours not in trace, "frames of ours, or of the import's machinery, tell the reader nothing"


def test_a_broken_file_can_be_imported_again(module: Callable[..., None]) -> None:
    """A file whose import failed leaves no half-made module behind."""
    module("1 / 0\n")
    for _ in range(2):
        with pytest.raises(AppError, match="ZeroDivisionError"):
            load("site_of_test.py:app")


def test_an_attribute_that_raises(module: Callable[..., None]) -> None:
    """A module that imports lazily may raise when it is asked: that is the app's error, with its traceback."""
    module("def __getattr__(name):\n    import no_such_library\n")
    with pytest.raises(AppError, match="No module named 'no_such_library'") as raised:
        load("site_of_test:app")
    assert "line 2, in __getattr__" in raised.value.detail


@pytest.mark.parametrize("error", ["LookupError('no such tenant')", "SystemExit('no such tenant')"])
def test_a_factory_that_raises(module: Callable[..., None], error: str) -> None:
    """The factory's error is named in one line, and the traceback starts at the factory's own."""
    module(f"def make():\n    raise {error}\n")
    with pytest.raises(AppError, match="the factory site_of_test:make raised .*: no such tenant") as raised:
        load("site_of_test:make", factory=True)
    assert "line 2, in make" in raised.value.detail
    assert "apps.py" not in raised.value.detail


def test_what_is_no_factory(module: Callable[..., None]) -> None:
    """A factory that can't be called, and one that returns no app, are refused."""
    module("make = 3\nnothing = lambda: None\n")
    with pytest.raises(AppError, match="can't be called as a factory; leave --factory out"):
        load("site_of_test:make", factory=True)
    with pytest.raises(AppError, match="site_of_test:nothing is a NoneType, which can't be called"):
        load("site_of_test:nothing", factory=True)

"""Find the object that a target, the text that names an app, stands for.

| target | names |
|---|---|
| `module:attr`, `module:attr.inner` | an attribute of a module on the import path |
| `path/file.py:attr` | an attribute of a file |
| `module:create_app()`, `module:create_app("prod", debug=True)` | what a factory returns; its arguments are literals |
| `module`, `path/file.py` | its attribute `application` or `app`; with `factory`, `create_app` or `make_app` |

A file in a package (with an `__init__.py` beside it) is imported as a module of that package. So its relative imports work, and it
isn't loaded twice when the package imports it by its own name. Any other file is imported by its own name.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from ..core.wording import with_article
from ..errors import AppError, ClusterError, one_line, trace

_APP_NAMES = ("application", "app")
"""The attributes to look for if a target names none, in this order."""
_FACTORY_NAMES = ("create_app", "make_app")
"""The factories to look for if a target names none, in this order."""
NO_LOOP_ERRORS = (
    "no event loop runs while the app is loaded, so that workers can be forked; open what needs one in the app's lifespan, "
    "or in a hook of worker.on_start"
)
_TARGET = re.compile(r"(?P<source>.+?)(?::(?P<path>[^:(]+(?:\(.*\))?))?", re.DOTALL)
_DOTTED = re.compile(r"\w+(\.\w+)*")


def find(target: str, *, factory: bool = False) -> tuple[object, str]:
    """Return the object that a target names, and its name in messages.

    Args:
        factory: the target names a callable that returns the object.

    Raises:
        AppError: the target can't be imported (`detail` has the app's own traceback), or names no object.
    """
    match = _TARGET.fullmatch(target)
    source, path = (match["source"], match["path"]) if match else ("", None)
    if not source.endswith(".py") and (not all(source.split(".")) or re.search(r"[:/\\]", source)):
        raise _names_none(target)
    if path is None:
        path = _usual(_module(source, target), source, target, factory)
        target = f"{source}:{path}"
    if not path.endswith(")"):
        found = _attribute(source, path, target)
        return (made_by(found, target) if factory else found), target
    name, arguments, keywords = _called(path, target)
    if factory:
        raise AppError(f"{target!r} calls the factory already; leave --factory out")
    return made_by(_attribute(source, name, target), f"{source}:{name}", arguments, keywords, said_by="()"), target


def made_by(
    factory: object,
    label: str,
    arguments: Sequence[Any] = (),
    keywords: Mapping[str, Any] = MappingProxyType({}),
    *,
    said_by: str = "--factory",
) -> object:
    """Call a factory and return its result.

    Args:
        label: the name of the factory in messages.
        said_by: the text by which the user asked for the call.

    Raises:
        AppError: the factory can't be called, raises, or is async; the message begins with `label`.
    """
    if not callable(factory):
        raise AppError(
            f"{label} is {with_article(type(factory).__name__)}, which can't be called as a factory; leave {said_by} out"
        )
    try:
        made = factory(*arguments, **keywords)
    except (Exception, SystemExit) as error:
        raise AppError(f"the factory {label} raised {one_line(error)}", detail=trace(error)) from error
    if inspect.isawaitable(made) and not callable(made):
        if inspect.iscoroutine(made):
            made.close()  # otherwise Python warns that it was never awaited
        raise AppError(f"the factory {label} is async; make it a plain function: {NO_LOOP_ERRORS}")
    return made


def _names_none(target: str, reason: str = "") -> AppError:
    more = f"; {reason}" if reason else ""
    return AppError(f"{target!r} names no app: write module:attribute or path/file.py:attribute{more}")


def _usual(module: ModuleType, source: str, target: str, factory: bool) -> str:
    """Return the attribute that a target without one stands for. Raises AppError: there is none, or there are two that differ."""
    names = _present(module, _FACTORY_NAMES if factory else _APP_NAMES)
    objects = [vars(module)[name] for name in names]
    if not names:
        others = [] if factory else _present(module, _FACTORY_NAMES)
        hint = f"; is it {source}:{others[0]}() ?" if others else ""
        raise _names_none(target, f"{source} has no {' or '.join(_FACTORY_NAMES if factory else _APP_NAMES)}{hint}")
    if any(each is not objects[0] for each in objects):
        raise _names_none(target, f"{source} has {' and '.join(names)}, which differ: name one, as {source}:{names[0]}")
    return names[0]


def _present(module: ModuleType, names: Sequence[str]) -> list[str]:
    """Return those of the names that a module has, and not for a submodule: a package may have a module named `app`."""
    return [name for name in names if name in vars(module) and not inspect.ismodule(vars(module)[name])]


def _called(path: str, target: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Parse `name(arguments)`: return the name and the arguments. Raises AppError: it is anything else."""
    try:
        call = ast.parse(path, mode="eval").body
        if not isinstance(call, ast.Call) or not _DOTTED.fullmatch(name := ast.unparse(call.func)):
            raise ValueError
        arguments = [ast.literal_eval(each) for each in call.args]
        keywords = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg is not None}
        if len(keywords) != len(call.keywords):
            raise ValueError
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise _names_none(
            target, "or module:factory(), with literals as arguments: module:factory('prod', debug=True)"
        ) from None
    return name, arguments, keywords


def _attribute(source: str, path: str, target: str) -> object:
    found: object = _module(source, target)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppError(f"{source} has no attribute {path!r} (wanted by {target!r})") from None
        except Exception as error:  # a module's own __getattr__ may import modules, and so raise anything
            raise _broken(target, error) from error
    return found


def _module(source: str, target: str) -> ModuleType:
    try:
        return _of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except ClusterError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (source == error.name or source.startswith(error.name + ".")):
            raise AppError(
                f"there is no module {error.name!r} (wanted by {target!r}); it is searched in {_searched()}"
            ) from None
        raise _broken(source, error) from error
    except (
        BaseException
    ) as error:  # an app's module may raise anything, SystemExit included; its code isn't our exit code
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _broken(source, error) from error


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise AppError(f"there is no file {str(path)!r} (looked for in {Path.cwd()})")
    file = path.resolve()
    name, root = _module_name(file)
    loaded = sys.modules.get(name)
    if loaded is not None:
        if _is_of(loaded, file):
            return loaded  # for another of our apps
        raise _taken(path, name)
    package = name.partition(".")[0]
    if package in sys.modules and not _is_of(sys.modules[package], root / package / "__init__.py"):
        raise _taken(path, package)
    sys.path.insert(0, str(root))
    if root == file.parent:
        return _executed(name, file)
    # Last on the path: a file of the package can import its neighbours by their bare names, and they hide no other module.
    sys.path.append(str(file.parent))
    return importlib.import_module(name)


def _module_name(file: Path) -> tuple[str, Path]:
    """Return the name by which a file is imported, and the directory in which that name is found."""
    names, root = [file.stem], file.parent
    # A name with a dot can't be imported as part of a package.
    while (root / "__init__.py").is_file() and "." not in names[0] and "." not in root.name:
        names.insert(0, root.name)
        root = root.parent
    if len(names) > 1 and names[-1] == "__init__":
        names.pop()
    return ".".join(names), root


def _executed(name: str, file: Path) -> ModuleType:
    """Execute a file that is in no package, and return its module. Its name may be one that `import` can't name: `my.app.py`."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before its code runs: pickle and dataclasses look the module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_of(module: ModuleType, file: Path) -> bool:
    """Return whether a module was loaded from that file, by any path."""
    loaded = vars(module).get("__file__")
    return isinstance(loaded, str) and os.path.exists(loaded) and os.path.samefile(loaded, file)


def _taken(path: Path, name: str) -> AppError:
    return AppError(f"{path} can't be imported: a module named {name!r} is loaded already; rename the file")


def _broken(source: str, error: BaseException) -> AppError:
    hint = ""
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        hint = "; put an __init__.py beside it, or name it as package.module:attribute"
    return AppError(f"{source} can't be imported: it raised {one_line(error)}{hint}", detail=trace(error))


def _searched() -> str:
    return sys.path[0] or str(Path.cwd())

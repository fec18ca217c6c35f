"""The image of a generation: the app, imported once, with everything that serving it needs.

Loading happens in one process before anything is forked (or, with `preload=false`, in each worker by itself). The order matters:
the working directory and the import path first, then the app, the engine, `warm_up`. The heap is collected and frozen last, so
that reference counts and the collector leave the shared pages alone.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, cast

from ...config.settings import Settings
from ...core.wording import with_article
from ...engines import registry
from ...engines.base import Engine
from ...errors import AppError, ClusterError, ConfigError, one_line, trace
from ...linux import privileges
from ...runtime import env_files, logging_setup
from ...runtime.app_loader import App, load
from . import bytecode, inheritance

logger = logging.getLogger("cluster2.zygote")

_NO_FILES: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Image:
    """A generation, ready to serve.

    Attributes:
        apps: each app with its engine, in the order of the options.
        validator: of the health check, if there is one.
        threads: names of threads that are running although nothing serves yet; with any, forking is unsafe.
        connections: peers of connections that the import has opened; after a fork all workers would share them.
    """

    settings: Settings
    apps: Sequence[tuple[App, type[Engine]]]
    threads: list[str]
    connections: list[str]
    validator: Callable[..., Any] | None = None


def build(
    settings: Settings, sources: Mapping[str, str], targets: Sequence[object], files: Mapping[str, Any] = _NO_FILES
) -> Image:
    """Import the apps and get everything ready to fork.

    Args:
        settings: the effective options.
        sources: of options that were set on purpose.
        targets: the apps: `module:attr` each, or the object itself (script mode).
        files: paths to use instead of those of the options, by field: copies of their files.

    Raises:
        AppError: an app can't be imported, or `warm_up` raised.
        ConfigError: the engine can't take the app, or an option.
    """
    # A collection frees objects and leaves holes in pages that a fork shares; new objects would fill them, and so copy the
    # pages (documentation of `gc.freeze`). The worker enables it again.
    gc.disable()
    name = inheritance.own_name()
    copied = replace(settings, **files)
    _enter(copied)
    bytecode.install()
    logging_setup.configure(settings)
    loaded = _load(settings, sources, targets)
    validator = _validator(settings)
    _warm_up(settings)
    return Image(copied, loaded, inheritance.threads(name), sorted(inheritance.connections().values()), validator)


def freeze() -> None:
    """Exempt the heap of the image from garbage collection, for as long as processes are forked from it.

    A collection would write to the header of each object, and so copy the shared page.
    """
    gc.collect()
    gc.freeze()


def _enter(settings: Settings) -> None:
    """Set up the process as the options say: user, umask, environment, directory, import path.

    Privileges are dropped first, so that no line of the app runs with more of them than its requests will.
    """
    if settings.user is not None or settings.group is not None:
        privileges.drop_privileges(settings.user, settings.group)
    if settings.umask is not None:
        os.umask(settings.umask)
    if settings.env_file is not None:
        os.environ.update(env_files.read(Path(settings.env_file)))
    try:
        os.chdir(settings.chdir)
    except OSError as error:
        raise ConfigError(f"chdir = {settings.chdir!r}: {error.strerror}") from error
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)


def _load(settings: Settings, sources: Mapping[str, str], targets: Sequence[object]) -> list[tuple[App, type[Engine]]]:
    apps = [load(target, factory=settings.factory) for target in targets]
    choices = [
        registry.EngineChoice(app.label, app.interface, registry.choose_engine(settings.engine, app.interface))
        for app in apps
    ]
    for note in registry.check_options(choices, settings, sources):
        logger.info(note)
    for each in choices:
        each.engine.preload(settings)
    return [(app, each.engine) for app, each in zip(apps, choices, strict=True)]


def _warm_up(settings: Settings) -> None:
    warm_up: Any = settings.warm_up
    if warm_up is None:
        return
    label = warm_up if isinstance(warm_up, str) else getattr(warm_up, "__qualname__", repr(warm_up))
    try:
        function = resolve_name(warm_up) if isinstance(warm_up, str) else warm_up
        result = function()
        if inspect.iscoroutine(result):
            result.close()
            raise ConfigError(
                f"warm_up = {label}: it is async; no event loop runs before the fork, so make it a plain function"
            )
    except ClusterError:
        raise
    except (Exception, SystemExit) as error:
        raise AppError(f"warm_up = {label} raised {one_line(error)}", detail=trace(error)) from error


def _validator(settings: Settings) -> Callable[..., Any] | None:
    named: Any = settings.ecv_validator
    if named is None or not isinstance(named, str):
        return None if named is None else cast(Callable[..., Any], named)
    try:
        found = resolve_name(named)
    except Exception as error:
        raise AppError(f"ecv.validator = {named} raised {one_line(error)}", detail=trace(error)) from error
    if not callable(found):
        raise ConfigError(f"ecv.validator = {named}: it is {with_article(type(found).__name__)}, which can't be called")
    return cast(Callable[..., Any], found)

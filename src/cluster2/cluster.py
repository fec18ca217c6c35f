"""The API `Cluster`: start a cluster from a script, or send commands to one from any process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

import msgspec

from . import events
from .core.reducers import Reducer
from .errors import ClusterError, ConfigError, one_line, trace
from .linux import signals
from .processes import launch, places
from .processes.master.control.commands import SIGNAL_COMMANDS
from .processes.master.generations.worker_factory import default_argv, script_argv
from .processes.master.logs.directory import LogDirectory
from .processes.master.master import Master
from .processes.master.messaging.component_status import ComponentStatus
from .processes.master.messaging.delegation import DEFAULT_CONCURRENCY
from .processes.master.messaging.hub import MessageHub
from .processes.master.resources import MasterResources
from .processes.master.state.inbox import Command
from .processes.zygote import bytecode
from .protocol.messages import CHANNEL_VARIABLE
from .runtime import option_sources
from .runtime.event_emitter import described
from .runtime.option_sources import Config

if TYPE_CHECKING:
    from .config.keywords import ClusterOptions
    from .runtime.control_client import ControlClient

_logger = logging.getLogger("cluster2.master")

H = TypeVar("H", bound=Callable[[Any], Any])
F = TypeVar("F", bound=Callable[..., Any])


class Cluster:
    """A cluster of workers that serve one app or several.

    Args:
        options: the options of the reference page; those of a table as a dictionary (`ecv={"control": True}`).

    Raises:
        ConfigError: an option is unknown, or has a bad value.
    """

    def __init__(self, **options: Unpack[ClusterOptions]) -> None:
        self._options = cast(dict[str, Any], options)
        try:
            self._config = option_sources.load(self._options, check=False)
        except ConfigError as error:
            _tell_if_uncaught(error)
            raise
        self._switchboard = MessageHub()
        self._name_warnings: list[str] = []

    @classmethod
    def _from_config(cls, config: Config) -> Cluster:
        """Return a cluster with options that are loaded already."""
        cluster = cls.__new__(cls)
        cluster._options, cluster._config = {}, config
        cluster._switchboard, cluster._name_warnings = MessageHub(), []
        return cluster

    @property
    def config(self) -> Config:
        """The effective options and their sources."""
        return self._config

    # Serving

    def listen(self, app: object = None, *, factory: bool | Callable[..., object] = False) -> None:
        """Serve until the cluster ends, then return. Call it in a script's main thread.

        This process becomes the master. If the app is given as an object, the master executes this script again to load it. In
        that second process this call forks the workers and never returns. So code before the call runs in both processes, and code
        after it runs in the master only.

        Args:
            app: the app, or `module:attr`, or None if the options name it.
            factory: a callable that returns the app; or true, if `app` is one.

        Raises:
            SystemExit: the cluster can't serve. It has the exit code of the error, which is printed on standard error.
        """
        try:
            _refuse_imported_main()
            configured, targets = self._with(app, factory)
            if CHANNEL_VARIABLE in os.environ:
                from .processes import child_main  # imports the engines, which a master doesn't need

                child_main.execute_again_if_stale()
                sys.exit(child_main.run(configured, targets))
            argv = default_argv() if targets is None else _own_script()
            bytecode.remove_stale()
            # The script may go on after the cluster's end, and has its own signal handlers back then.
            with signals.given_back(SIGNAL_COMMANDS):
                if code := launch.run(configured, hub=self._switchboard, argv=argv, targets=targets):
                    raise SystemExit(code)
        except ClusterError as error:
            report(error)
            _tell_master(error)
            raise SystemExit(error.exit_code) from None

    async def serve(self, app: object = None) -> int:
        """Serve within a running event loop, and return the exit code. Cancel the call, or call `shutdown`, to end the cluster.

        Signals are left to the program. The app must be importable: `module:attr`, or an object that is an attribute of its module.

        Raises:
            ClusterError: the cluster can't serve.
        """
        async with self.running(app) as running:
            return await running.ended()

    @contextlib.asynccontextmanager
    async def running(self, app: object = None) -> AsyncIterator[Running]:
        """Serve during an `async with` block: `async with cluster.running(app) as running:`. It is mostly for tests.

        Raises:
            ClusterError: the cluster can't serve.
        """
        target = app if app is None or isinstance(app, str) else _importable(app)
        configured, _ = self._with(target, False)
        launch.prepare(configured)
        # The output of this process belongs to the program, so log files are made only if an option asks for them.
        asked = any(map(configured.explicit, launch.LOG_OPTIONS))
        logbook = LogDirectory.from_settings(configured.settings, own=False) if asked else None
        with launch.acquire_resources(configured, default_argv(), logbook, owns_process=False) as owned:
            running = Running(owned)
            task = asyncio.ensure_future(
                launch.supervise(owned, self._switchboard, running.ready.set, started=running.started)
            )
            running.task = task
            try:
                # The master ends before it is ready if it can't serve: wait for either.
                waiting = asyncio.ensure_future(running.ready.wait())
                await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if task.done():
                    task.result()
                yield running
            finally:
                running.shut_down()
                if not task.done():  # an error in the block must not leave workers behind
                    await task

    # Events

    @overload
    def on(self, name: str, handler: H) -> H: ...
    @overload
    def on(self, name: str, handler: None = None) -> Callable[[H], H]: ...
    def on(self, name: str, handler: H | None = None) -> H | Callable[[H], H]:
        """Register a handler, sync or async, for an event: `@cluster.on("died")`, or `cluster.on("died", handler)`."""
        if handler is None:
            return lambda decorated: self.on(name, decorated)
        self._check_event_name(name, handler)
        self._switchboard.emitter.on(name, handler)
        return handler

    def off(self, name: str, handler: Callable[[Any], Any]) -> None:
        """Remove a handler. Raises ValueError: it isn't registered for that event."""
        self._switchboard.emitter.off(name, handler)

    @overload
    def once(self, name: str, handler: H) -> H: ...
    @overload
    def once(self, name: str, handler: None = None) -> Callable[[H], H]: ...
    def once(self, name: str, handler: H | None = None) -> H | Callable[[H], H]:
        """Register a handler for the next event of that name only."""
        if handler is None:
            return lambda decorated: self.once(name, decorated)
        self._check_event_name(name, handler)
        self._switchboard.emitter.once(name, handler)
        return handler

    def _check_event_name(self, name: str, handler: Callable[[Any], Any]) -> None:
        """Warn of a name that is probably a misspelt event of the master's.

        It isn't refused, since an app may emit an event of that name. Before the master runs, logging isn't set up, so the
        warning is kept until the start.
        """
        meant = events.meant_by(name, [number.name for number in SIGNAL_COMMANDS])
        if meant is None:
            return
        text = f"{described(handler)} is registered for {name!r}, which is no event of the master; {meant}"
        if self._switchboard.running:
            _logger.warning("%s", text)
        else:
            self._name_warnings.append(text)

    def _with_name_warnings(self, config: Config) -> Config:
        return dataclasses.replace(config, warnings=(*config.warnings, *self._name_warnings))

    def emit(self, event: str, data: object = None, targets: Iterable[int] | None = None) -> None:
        """Emit an event to workers, which handle it with `worker.on(event, handler)`.

        It may be called from any thread of the master. In another process it sends the event by way of the master.

        Args:
            data: plain data.
            targets: the pids of the workers that receive the event; None: all workers.

        Raises:
            NotRunning: no master is running, here or on this pids directory.
            ClusterError: the data can't be sent to another process.
            ValueError: the name is one of the master's own events.
        """
        pids = None if targets is None else list(targets)  # an iterator can be read once, and JSON has lists
        if self._switchboard.running:
            self._switchboard.emit(event, data, pids)
        else:
            self._client().call("emit", {"event": events.own(event), "data": data, "targets": pids})

    def notify(self, event: str, value: object, targets: Iterable[int] | None = None) -> None:
        """Emit the change of a value that workers have asked for before (`delegate(…, notification=…)`). It is an alias of `emit`."""
        self.emit(event, value, targets)

    # Delegated work

    @overload
    def on_delegate(self, name: str, handler: F, *, limit: int = DEFAULT_CONCURRENCY, single: bool = True) -> F: ...
    @overload
    def on_delegate(
        self, name: str, handler: None = None, *, limit: int = DEFAULT_CONCURRENCY, single: bool = True
    ) -> Callable[[F], F]: ...
    def on_delegate(
        self, name: str, handler: F | None = None, *, limit: int = DEFAULT_CONCURRENCY, single: bool = True
    ) -> F | Callable[[F], F]:
        """Register the handler for work that workers delegate under that name: `@cluster.on_delegate("read-config")`.

        The handler is called in the master with the message, and with a `DelegateRequest` if it takes two arguments. Its result is
        sent to the worker. An exception becomes a DelegateError there. A sync handler runs in a thread. Equal requests that are
        under way at the same time share one call.

        Args:
            limit: how many calls run at a time; others wait for their turn.
            single: false: equal requests are separate calls.

        Raises:
            ConfigError: that name has a handler already.
        """
        if handler is None:
            return lambda decorated: self.on_delegate(name, decorated, limit=limit, single=single)
        self._switchboard.delegates.handle(name, handler, limit=limit, single=single)
        return handler

    if not TYPE_CHECKING:  # with __getattr__, a type checker would accept every name

        def __getattr__(self, name: str) -> Any:
            if name == "delegate":
                raise AttributeError("Cluster.delegate is named Cluster.on_delegate now")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # From any process

    @overload
    def status(self) -> dict[str, Any]: ...
    @overload
    def status(
        self,
        component: str,
        *,
        worker: int | None = None,
        params: object = None,
        reducer: str | Reducer | None = None,
    ) -> Coroutine[Any, Any, ComponentStatus]: ...
    def status(
        self,
        component: str | None = None,
        *,
        worker: int | None = None,
        params: object = None,
        reducer: str | Reducer | None = None,
    ) -> dict[str, Any] | Coroutine[Any, Any, ComponentStatus]:
        """Return the status as `cluster2 status --json` shows it; with a component, return its status, to be awaited.

        Args:
            component: the name of a component (`worker.register_status`).
            worker: ask only the worker of this pid or slot.
            params: plain data for the component's view.
            reducer: the name of a reducer, or a function of the list of values, instead of the component's own.

        Raises:
            NotRunning: no master is running.
            ClusterError: no worker has such a component.
            ValueError: there is no such reducer.
        """
        if component is None:
            return self._client().call("status")
        return self._component(component, worker, params, reducer)

    def statuses(self) -> list[str]:
        """Return the names of all components. Raises NotRunning."""
        if self._switchboard.running:
            return self._switchboard.statuses.names()
        names: list[str] = self._client().call("statuses")["names"]
        return names

    def set_status(self, component: str, value: object, *, worker: int | None = None) -> None:
        """Set a component to a value, in all workers and in those that are made later.

        Args:
            worker: set it only in the worker of this pid or slot.

        Raises:
            NotRunning: no master is running.
            ClusterError: the value can't be sent to another process.
        """
        if self._switchboard.running:
            statuses = self._switchboard.statuses
            self._switchboard.call_soon(lambda: statuses.update(component, value, worker))
        else:
            self._client().call("set-status", {"component": component, "value": value, "worker": worker})

    async def _component(
        self, name: str, worker: int | None, params: object, reducer: str | Reducer | None
    ) -> ComponentStatus:
        board = self._switchboard
        if board.running:
            # Another loop of this process may be the caller's: the master's state belongs to the master's loop.
            found = await board.in_master(lambda: board.statuses.view(name, worker, params, reducer))
            return cast(ComponentStatus, found)
        asked = {"component": name, "worker": worker, "params": params}
        if isinstance(reducer, str):
            asked["reducer"] = reducer
        answer = await asyncio.to_thread(self._client().call, "component", asked)
        found = ComponentStatus.from_plain(answer)
        if callable(reducer):  # a function can't be sent to the master, so it is applied here
            return msgspec.structs.replace(found, value=reducer(list(found.workers.values())))
        return found

    def reload(self) -> dict[str, Any]:
        """Load the code again; return when the new generation serves and the old workers have left.

        Raises:
            NotRunning: no master is running.
            ClusterError: the reload was abandoned, or it took effect and an old worker did not leave in order.
        """
        return self._client().call("reload")

    def recycle(self, worker: int | None = None) -> dict[str, Any]:
        """Replace the worker of that pid or slot, or all workers in turn; return when they have left.

        Raises:
            NotRunning: no master is running.
            ClusterError: a worker crashed or did not finish within `drain_timeout`, or its successor can't be made.
        """
        return self._client().call("recycle", {"worker": worker})

    def scale(self, workers: int) -> dict[str, Any]:
        """Set the number of workers; return when that number serves.

        Raises:
            NotRunning: no master is running.
            ClusterError: workers can't be made; or one that was to leave crashed, or did not finish within `drain_timeout`.
        """
        return self._client().call("scale", {"workers": workers})

    def enable(self) -> dict[str, Any]:
        """Enable traffic: health checks respond that the cluster serves. It is in effect in all workers on return. Raises NotRunning."""
        return self._client().call("enable")

    def disable(self) -> dict[str, Any]:
        """Disable traffic: health checks respond that the cluster wants none. It continues to serve. Raises NotRunning."""
        return self._client().call("disable")

    def shutdown(self) -> None:
        """Shut the cluster down gracefully; return when its master has ended.

        Raises:
            NotRunning: no master is running.
            ClusterError: the cluster has ended, but requests were lost: a worker crashed or did not finish within `drain_timeout`.
        """
        self._client().send_and_wait_for_exit("shutdown")

    def stop(self) -> None:
        """Stop the cluster at once; return when its master has ended. Raises NotRunning."""
        self._client().send_and_wait_for_exit("stop")

    def _client(self) -> ControlClient:
        from .runtime.control_client import ControlClient  # not for masters, whose memory it would add to

        return ControlClient(Path(self._config.settings.pids))

    def _with(self, app: object, factory: bool | Callable[..., object]) -> tuple[Config, list[object] | None]:
        """Return the configuration for that app, and the apps as objects; None: all are named by text."""
        given = dict(self._options)
        if callable(factory):
            app, factory = factory, True
        if factory:
            given["factory"] = True
        if isinstance(app, str):
            given["app"] = app
        loaded = self._with_name_warnings(option_sources.load(given))
        if app is not None and not isinstance(app, str):
            return loaded, [app]
        named = [target for target, _ in loaded.settings.targets()]
        if None in named:
            raise ConfigError("no app is named: give one to listen(), or set `app`")
        return loaded, None if all(isinstance(target, str) for target in named) else named


class Running:
    """A cluster that serves within this program.

    Attributes:
        ready: set when all workers serve.
        task: the master; its result is the exit code.
    """

    def __init__(self, owned: MasterResources) -> None:
        self._owned = owned
        self.ready = asyncio.Event()
        self.task: asyncio.Future[int]
        self._master: Master | None = None
        self._shuts_down = False

    def started(self, master: Master) -> None:
        """Note that the master exists. The master calls this once."""
        self._master = master

    @property
    def addresses(self) -> list[str]:
        """The addresses of the apps, with the real ports."""
        return [str(listener.address) for _, listener in self._owned.listeners]

    def shut_down(self) -> None:
        """Begin a graceful shutdown. `ended` returns when it is complete."""
        if self._master is not None and not self._shuts_down and not self.task.done():
            self._shuts_down = True  # a second shutdown command would end a lame duck early
            self._master.post(Command("shutdown", {}, lambda result: None))

    async def ended(self) -> int:
        """Wait until the cluster has ended, and return the exit code."""
        return await asyncio.shield(self.task)  # to cancel the caller must not cancel the master


def run(configured: Config, *, on_ready: Callable[[], None] | None = None) -> int:
    """Carry out `cluster2 run`: call `setup` with the cluster, serve, and return the exit code.

    Raises:
        ClusterError: the cluster can't serve.
    """
    # In the background no user would read which temporary directory is used for pids: then an unwritable one is an error.
    usable = places.with_writable_pids(configured) if on_ready is None else contextlib.nullcontext(configured)
    with usable as configured:
        cluster = Cluster._from_config(configured)
        setup: Any = configured.settings.setup
        if setup is not None:
            _set_up(setup, cluster, configured)
            configured = cluster._with_name_warnings(configured)
        return launch.run(configured, hub=cluster._switchboard, on_ready=on_ready)


def report(error: ClusterError) -> None:
    """Print an error on standard error: one line, and the detail below it."""
    sys.stderr.write(f"cluster2: error: {error.message}\n" + (f"{error.detail}\n" if error.detail else ""))


def _tell_master(error: ClusterError) -> None:
    """Report to the master why this script ends, if a master has executed it."""
    if CHANNEL_VARIABLE in os.environ:
        from .processes import child_main

        child_main.refuse(error)


def _tell_if_uncaught(error: ConfigError) -> None:
    """Report an error to the master if the script doesn't catch it: a hook runs when the interpreter ends."""
    if CHANNEL_VARIABLE not in os.environ:
        return
    usual = sys.excepthook  # whether the script catches the error is known only when it doesn't

    def hook(kind: type[BaseException], raised: BaseException, trace: TracebackType | None) -> None:
        if raised is error:
            _tell_master(error)
        usual(kind, raised, trace)

    sys.excepthook = hook


def _set_up(setup: Any, cluster: Cluster, configured: Config) -> None:
    from pkgutil import resolve_name

    sys.path.insert(0, configured.settings.chdir)
    source = configured.sources["setup"]
    try:
        (resolve_name(setup) if isinstance(setup, str) else setup)(cluster)
    except ClusterError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"setup = {setup} ({source}): it raised {one_line(error)}", detail=trace(error)) from error


def _refuse_imported_main() -> None:
    """Raise ConfigError in a child of multiprocessing, which executes the script again to find the function to call."""
    frame: FrameType | None = sys._getframe()
    while (
        frame is not None and frame.f_globals.get("__name__") != "__mp_main__"
    ):  # the name under `multiprocessing.spawn`
        frame = frame.f_back
    if frame is not None:
        raise ConfigError(
            "multiprocessing executes this script again in a child process: put what serves below "
            '`if __name__ == "__main__":`'
        )


def _own_script() -> list[str]:
    if hasattr(sys, "ps1") or not sys.argv[0]:
        raise ConfigError("an app object can be served from a script file only; here, name it as module:attr")
    return script_argv(str(option_sources.working_directory()))


def _importable(app: object) -> str:
    """Return `module:attr` of an object, found among the loaded modules. Raises ConfigError: it is in none of them."""
    from .runtime.app_loader import Declared

    inner = app.call if isinstance(app, Declared) else app
    for name, module in list(sys.modules.items()):
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is app or value is inner:
                file = getattr(module, "__file__", None)
                return f"{file if name == '__main__' and file else name}:{attribute}"
    raise ConfigError(f"{app!r} isn't an attribute of a module, so workers can't import it: name it as module:attr")

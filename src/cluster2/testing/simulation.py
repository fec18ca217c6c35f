"""Make a test's process a worker without a cluster, for the tests of apps."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import events
from ..errors import DelegateError, DelegateTimeout
from ..processes.worker.info import WorkerInfo
from ..processes.worker.messaging import api
from ..processes.worker.messaging.pending_calls import refuse_on_a_loop
from ..protocol import codec, messages


class Simulated:
    """A simulated worker, and its master as the app sees it.

    Attributes:
        life: the worker's pid, slot, generation and whether it drains.
        emitted: the events that the app has emitted: pairs of name and data.
        delegated: the work that the app has delegated: pairs of kind and message, also those of `delegate_nowait`.
    """

    def __init__(self, life: WorkerInfo, delegates: Mapping[str, Callable[[Any], Any]]) -> None:
        self.life = life
        self.emitted: list[tuple[str, Any]] = []
        self.delegated: list[tuple[str, Any]] = []
        self._delegates = delegates

    async def start(self) -> None:
        """Run the hooks of `worker.on_start`."""
        await api.hooks.run_start()

    async def drain(self) -> None:
        """Begin to drain: wake the tasks that wait for `worker.drained()`, and run the hooks of `worker.on_drain`."""
        self.life.draining = True
        await api.hooks.run_drain()

    async def stop(self) -> None:
        """Run the hooks of `worker.on_stop`."""
        await api.hooks.run_stop()

    def receive(self, event: str, data: object = None) -> None:
        """Call the app's handlers as if the event came from the master. With async handlers, call it in an event loop."""
        sent = codec.value(codec.sendable(data, f"the data of event {event!r}"))
        api.emitter.emit(events.Emitted(time=time.time(), event=events.own(event), data=sent))

    async def status(self, name: str, params: object = None) -> Any:
        """Return the status that this worker reports for a component. Raises DelegateError: it can't."""
        given = messages.NO_PAYLOAD if params is None else codec.sendable(params, "params")
        answer = await api.components.view_status(messages.View(0, name, given))
        if answer.error is not None:
            raise DelegateError(answer.error)
        return codec.value(answer.value)

    async def set_status(self, name: str, value: object) -> None:
        """Set a component as the master does."""
        await api.components.update(name, codec.value(codec.sendable(value, f"the value of component {name!r}")))

    # The calls of the app, by way of `worker`

    async def delegate(self, asked: messages.Delegate) -> Any:
        """Return the result of the test's handler."""
        try:
            async with asyncio.timeout(asked.timeout):
                result = self._call(asked)
                if inspect.isawaitable(result):
                    result = await result
        except TimeoutError:
            raise DelegateTimeout(f"{asked.delegate!r} had no result within {asked.timeout} s") from None
        except DelegateError:
            raise
        except Exception as error:
            raise _failed(asked, error) from error
        return codec.value(codec.sendable(result, f"the answer to {asked.delegate!r}"))

    def delegate_sync(self, asked: messages.Delegate) -> Any:
        """Return the result of the test's handler, in a thread."""
        refuse_on_a_loop(asked.delegate)
        return asyncio.run(self.delegate(asked))

    def delegate_nowait(self, asked: messages.Delegate) -> None:
        """Record the message. No handler is called, since no caller waits for its end."""
        self.delegated.append((asked.delegate, codec.value(asked.origin)))

    def emit(self, message: messages.Emit) -> None:
        """Record the event."""
        self.emitted.append((message.event, codec.value(message.data)))

    def _call(self, asked: messages.Delegate) -> Any:
        message = codec.value(asked.origin)
        self.delegated.append((asked.delegate, message))
        if asked.delegate not in self._delegates:
            raise DelegateError(f"no handler for {asked.delegate!r} was given to simulated()", type="LookupError")
        return self._delegates[asked.delegate](message)


def _failed(asked: messages.Delegate, error: Exception) -> DelegateError:
    return DelegateError(
        f"{asked.delegate!r} failed in the master: {type(error).__name__}: {error}", type=type(error).__name__
    )


_one = threading.Lock()


@contextlib.contextmanager
def simulated(
    *,
    slot: int = 0,
    generation: int = 1,
    draining: bool = False,
    delegates: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Iterator[Simulated]:
    """Make this process a worker for as long as the block lasts: `with worker.simulated(delegates={"read-config": fake}) as me:`.

    Args:
        delegates: the handlers of delegated work by kind, sync or async. They are called with the message. An exception becomes
            a DelegateError, as from a real master.
    """
    me = Simulated(WorkerInfo(os.getpid(), slot, generation, draining), delegates or {})
    with _one:  # a process is one worker at most
        before = api.bind_worker(me.life, me)
        try:
            yield me
        finally:
            api.bind_worker(*before)

"""Execute a process and supervise it: a zygote, an executed worker, the keeper, the monitor.

Each gets one end of a channel as its descriptor 3. When the channel closes the process exits. The kernel closes the channel when
the master ends as well, so no process is orphaned. The master learns of the exit by a pidfd, and reaps and kills through it,
since a pid may belong to another process by the time that it is used.

A `ChildProcess` is started once. `HelperProcess` and `WorkerFactory` start another one after an exit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from ....config.settings import SECRET_VARIABLES
from ....linux import exec_start, processes, stacks
from ....linux.descriptor_passing import DescriptorsLost, PacketError, Packets
from ....protocol import messages

logger = logging.getLogger("cluster2.master")

_CHANNEL_FD = 3
"""The descriptor of the channel in the child."""
KILL_TIMEOUT_S = 5.0
"""Seconds from SIGKILL to the end of a process. Only a process that waits in the kernel, for a dead disk, takes longer."""


class ChildProcess:
    """One process, from its execution until it is reaped.

    Attributes:
        pid: its process id.
        channel: the master's end, which doesn't block.
        left: done when the process has ended and is reaped; the result is its status (`exit code 0`, `SIGKILL`). Its last
            messages may still wait in the channel.
    """

    def __init__(
        self,
        argv: Sequence[str],
        order: bytes = b"",
        descriptors: Sequence[int] = (),
        *,
        fds: Mapping[int, int] | None = None,
        buffer: int | None = None,
        reap: bool = True,
        stacks_file: int | None = None,
        secrets: bool = False,
    ) -> None:
        """Execute a program.

        Args:
            argv: the program: absolute path and arguments.
            order: the first message in its channel, with `descriptors`; b"": none.
            fds: descriptors that it inherits beside the channel: the number in the child → the descriptor here.
            buffer: of the channel, in bytes; None: the system's default.
            reap: false: another part waits for its end, and `left` is never done.
            stacks_file: the descriptor here of the file that it writes its stacks to; None: a file is made, for `stacks`.
            secrets: it gets the secret variables as well, since it reads options from the environment itself.

        Raises:
            OSError: the system has no resources for it, or there is no such program. Nothing is left behind.
            PacketError: the order is too long.
        """
        self.channel, theirs = Packets.pair(buffer=buffer)
        self.left: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pidfd = self._stacks_file = -1
        try:
            self.channel.set_blocking(False)
            if order:
                self.channel.send(order, descriptors)
            if stacks_file is None:
                stacks_file = self._stacks_file = stacks.create()
            passed = {_CHANNEL_FD: theirs.fileno(), **(fds or {})}
            at = max(passed) + 1
            passed[at] = stacks_file
            kept = {name: value for name, value in os.environ.items() if secrets or name not in SECRET_VARIABLES}
            environ = {**kept, messages.CHANNEL_VARIABLE: str(_CHANNEL_FD), exec_start.STACKS_VARIABLE: str(at)}
            self.pid = processes.execute(argv, fds=passed, environ=environ)
            if reap:
                self._watch()
        except BaseException:
            self.channel.close()
            self._close_stacks_file()
            raise
        finally:
            theirs.close()

    def on_message(self, receive: Callable[[bytes, list[int]], None]) -> None:
        """Call this with each message and its descriptors, which the callee owns then; b"": the channel has closed.

        Raises:
            OSError: the channel can't be watched. The process is killed, since its messages could not be read.
        """

        def readable() -> None:
            try:
                packet, descriptors = self.channel.receive()
            except BlockingIOError:
                return
            except DescriptorsLost:
                return  # this process has no descriptor left, which is no fault of the child
            except ConnectionError:
                packet, descriptors = b"", []
            except OSError:
                return  # no memory for now: the message stays in the channel
            except PacketError:
                packet, descriptors = b"", []  # a process that violates the protocol is treated as if it had ended
            if not packet:
                self._loop.remove_reader(self.channel.fileno())
            receive(packet, descriptors)

        try:
            self._loop.add_reader(self.channel.fileno(), readable)
        except OSError:
            self.close_channel()
            self.kill()
            raise

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._pidfd >= 0:
            processes.send_signal(self._pidfd, signal.SIGKILL)

    async def stacks(self) -> str:
        """Return the Python stacks of its threads, or a line that says why there are none. It takes up to a second."""
        if self._pidfd < 0 or self._stacks_file < 0:
            return f"no stacks: process {self.pid} has ended"
        pidfd, file = os.dup(self._pidfd), os.dup(self._stacks_file)  # copies, since these are closed when it exits
        try:
            return await stacks.capture(file, pidfd, self.pid)
        finally:
            os.close(pidfd)
            os.close(file)

    def close_channel(self) -> None:
        """Close the channel, so that the process exits. Messages that are not read yet are lost."""
        if self.channel.fileno() >= 0:
            self._loop.remove_reader(self.channel.fileno())
            self.channel.close()

    async def wait_closed(self, patience: float) -> None:
        """Close the channel and wait until the process has exited. Kill it after `patience` seconds."""
        self.close_channel()
        await asyncio.wait({self.left}, timeout=patience)
        if not self.left.done():
            self.kill()
            await asyncio.wait({self.left}, timeout=KILL_TIMEOUT_S)
        if not self.left.done():
            logger.warning("process %d has not ended %g s after SIGKILL", self.pid, KILL_TIMEOUT_S)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self.left.get_loop()

    def _watch(self) -> None:
        try:
            self._pidfd = processes.open_pidfd(self.pid)
        except OSError:  # no descriptor is left: a process that can't be watched is killed
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        try:
            self._loop.add_reader(self._pidfd, self._exited)
        except OSError:
            os.close(self._pidfd)
            self._pidfd = -1
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise

    def _exited(self) -> None:
        try:
            status = processes.exit_of(self._pidfd)
        except ChildProcessError:  # the program that the master runs in has reaped it
            how = "reaped by another"
        else:
            if status is None:
                return
            how = str(status)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._close_stacks_file()
        if not self.left.done():
            self.left.set_result(how)

    def _close_stacks_file(self) -> None:
        if self._stacks_file >= 0:
            os.close(self._stacks_file)
            self._stacks_file = -1

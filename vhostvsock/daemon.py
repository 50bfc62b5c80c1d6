"""The daemon: start everything in order, run until told to stop, stop in reverse.

Before: cli/run.py with a checked configuration. After: vm.py for each VM, native.py for the data plane.
Order:  all sockets (each can fail, nothing is served yet) - engine - devices - events - front-ends - ready.
Rules:  - Ready is said when every socket listens and every device answers, and not before.
        - The first SIGTERM or SIGINT ends cleanly; a second one ends at once, by the kernel's default action.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from vhostvsock.config import DaemonConfig
from vhostvsock.native import EVENT_BATCH, Engine, Event
from vhostvsock.systemd import watchdog
from vhostvsock.systemd.activation import PassedSockets
from vhostvsock.systemd.notify import notify
from vhostvsock.vm import ServedVm

# As many VMs as a person reads in one line; the log has the rest.
_NAMED_IN_READY_LINE = 8
# After an unforeseen failure in a task of ours.
_RETRY_SECONDS = 1.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger("vhostvsock.daemon")


class Daemon:
    """Serves the VMs of one configuration."""

    def __init__(self, config: DaemonConfig, log_level: int, passed: PassedSockets | None = None) -> None:
        self._config = config
        self._passed = passed or PassedSockets()
        self._log_level = log_level
        self._vms: list[ServedVm] = []
        self._engine: Engine | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Serve until a signal; `on_ready` gets the line to announce."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._signalled, loop, stop, number)
        try:
            self._start(loop)
            on_ready(_ready_line(self._vms))
            notify("READY=1")
            self._tell_status()
            for vm in self._vms:
                vm.on_state = self._tell_status
            await stop.wait()
            notify("STOPPING=1")
        finally:
            await self._stop()

    def _signalled(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, number: signal.Signals) -> None:
        _log.info("%s: stopping", number.name)
        for each in _STOP_SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        stop.set()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        for config in self._config.vms:
            vm = ServedVm(config, self._config.handshake_timeout)
            self._vms.append(vm)
            vm.listen(self._passed)
        for stray in self._passed.left():
            _log.warning("%s (%s): the service manager listens there, but no VM does", stray.path, stray.name)
        self._passed.close()
        self._engine = Engine()
        self._engine.set_log_level(self._log_level)
        for vm in self._vms:
            vm.start(self._engine)
        self._engine.start_events(loop, self._handle_event)
        for vm in self._vms:
            self._keep_going(vm.serve)
            self._keep_going(vm.revive, self._engine)
        seconds = watchdog.period(os.environ)
        if seconds is not None:
            self._keep_going(watchdog.watch, seconds, lambda: self._vms)

    def _keep_going(self, what: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        async def task() -> None:
            while True:
                try:
                    await what(*args)
                except Exception:
                    # A fault of ours in one VM's task must not end it, nor any other's.
                    _log.exception("a task failed and is started again")
                    await asyncio.sleep(_RETRY_SECONDS)

        self._tasks.append(asyncio.create_task(task()))

    def _handle_event(self, event: Event) -> None:
        for vm in self._vms:
            if vm.handle == event.device and event.device != 0:
                vm.handle_event(event)
                return
        _log.log(event.level, "%s", event.text)

    def _tell_status(self) -> None:
        """Tell the service manager which VMs there are and how they are."""
        notify("STATUS=" + _few([f"{vm.name} (cid {vm.config.cid}) {vm.state}" for vm in self._vms]))

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._engine is not None:
            self._engine.stop_events()
        for vm in reversed(self._vms):
            await vm.stop()
        if self._engine is not None:
            events: Sequence[Event] = list(self._engine.drain(EVENT_BATCH))
            for event in events:
                self._handle_event(event)
            await asyncio.to_thread(self._engine.close)
        _log.info("stopped")


def _ready_line(vms: list[ServedVm]) -> str:
    named = _few([vm.describe() for vm in vms])
    return f"vhostvsock: ready: serving {len(vms)} VM{'' if len(vms) == 1 else 's'} ({named})"


def _few(texts: list[str]) -> str:
    """As many as one reads in a line, and how many there are besides."""
    more = len(texts) - _NAMED_IN_READY_LINE
    return ", ".join(texts[:_NAMED_IN_READY_LINE]) + (f", and {more} more" if more > 0 else "")

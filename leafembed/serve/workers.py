"""Several server processes on one port: started, told of signals, and replaced when they die.

They share the socket that listens, so that a connection goes to a process that has time for it, and nothing else. It
takes connections for as long as any of them has it open, and so all close it when they are told to end.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from leafembed.errors import Error
from leafembed.serve.logs import SERVER_LOG
from leafembed.serve.merged import bury

__all__ = ["Work", "end_with_parent", "supervise"]

_log = logging.getLogger(SERVER_LOG)

_LOOK_S = 0.5
_TRIES = 3
"""Processes that may die in a row before one was ready; then the server ends."""

Work = Callable[[Connection], None]
"""What a process does: serves until SIGTERM, and sends one object when it takes requests. Must be picklable."""


@dataclass(slots=True)
class _Crew:
    """The processes and what is known of them.

    Attributes:
        work: What each does.
        folder: Where they leave their metrics.
        ready: Called once, when all of the first ones take requests.
        listener: The socket that they share.
        members: Those that run, and what they tell through.
        waiting: Those that do not take requests yet.
        owed: Those of them that are to be told of SIGHUP, which would end them now.
        hiring: Whether one is being started, which needs the socket.
    """

    work: Work
    folder: Path
    ready: Callable[[], None]
    listener: socket.socket
    members: dict[BaseProcess, Connection] = field(default_factory=dict)
    waiting: set[BaseProcess] = field(default_factory=set)
    owed: set[BaseProcess] = field(default_factory=set)
    hiring: bool = False
    stopping: bool = False
    announced: bool = False
    failed: int = 0

    def hire(self) -> None:
        self.hiring = True  # a signal leaves the socket open from here on
        if self.listener.fileno() >= 0:
            self._start()
        self.hiring = False
        if self.stopping:
            self.listener.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of others hold
        told, tells = context.Pipe(duplex=False)
        member = context.Process(target=self.work, args=(tells,), name="leaf-serve")
        member.start()
        tells.close()
        self.waiting.add(member)
        self.members[member] = told
        if self.stopping:  # told to end while this one was on its way: nobody has told it
            member.terminate()

    def signal(self, number: int, frame: FrameType | None = None) -> None:
        """Pass a signal on; all but SIGHUP end the processes. One that is not ready gets SIGHUP when it is."""
        hang_up = getattr(signal, "SIGHUP", None)
        self.stopping |= number != hang_up
        for member in self.members:
            if number == hang_up and member in self.waiting:
                self.owed.add(member)
            elif member.pid is not None and member.is_alive():
                os.kill(member.pid, number if number == hang_up else signal.SIGTERM)
        if self.stopping and not self.hiring:
            self.listener.close()

    def look(self) -> None:
        """Wait a moment for something to happen, and see to it."""
        pipes = {told: member for member, told in self.members.items() if member in self.waiting}
        wait([*pipes, *(member.sentinel for member in self.members)], _LOOK_S)
        for told, member in pipes.items():
            if _ready(told):
                self.waiting.discard(member)
                self.failed = 0
                if member in self.owed and member.pid is not None and member.is_alive():
                    os.kill(member.pid, signal.SIGHUP)
                self.owed.discard(member)
        if not (self.waiting or self.announced or self.stopping):
            self.announced = True
            self.ready()
        for member in [member for member in self.members if not member.is_alive()]:
            self._replace(member)

    def _replace(self, member: BaseProcess) -> None:
        self.members.pop(member).close()
        self.owed.discard(member)
        bury(self.folder, member.pid or 0)
        if self.stopping:
            return
        if member in self.waiting:
            self.waiting.discard(member)
            self.failed += 1
            if self.failed >= _TRIES:
                self.signal(signal.SIGTERM)
                return
            time.sleep(_LOOK_S)
        _log.error("process %s ended with status %s and is replaced", member.pid, member.exitcode)
        self.hire()


def _ready(told: Connection) -> bool:
    """Whether a process has said that it takes requests; one that died has closed its end, which can be read too."""
    try:
        return told.poll() and bool(told.recv())
    except (EOFError, OSError):
        return False


def supervise(work: Work, count: int, folder: Path, ready: Callable[[], None], listener: socket.socket) -> int:
    """Run ``count`` processes until SIGTERM or SIGINT, and return 0; SIGHUP is passed on to each.

    Args:
        work: What each does.
        count: At least 1.
        folder: Where they leave their metrics.
        ready: Called when all take requests.
        listener: The socket that they share; closed here once they are to end.

    Raises:
        Error: If the processes die before they take requests.
    """
    crew = _Crew(work, folder, ready, listener)
    taken = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, crew.signal) for number in taken}
    try:
        for _ in range(count):
            crew.hire()
        while crew.members:
            crew.look()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if crew.failed >= _TRIES:
        raise Error("leaf serve: the server processes end before they take requests; their lines above say why")
    return 0


def end_with_parent() -> None:
    """End this process, as SIGTERM does, when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="leaf-parent", daemon=True).start()

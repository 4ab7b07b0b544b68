"""Signals that ask a run to stop: the first is a request, a second Ctrl-C or SIGTERM ends the process. No torch here."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

# SIGHUP is a terminal that closes; SIGUSR1 is what job schedulers send ahead of a time limit.
NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
INSISTING = (signal.SIGINT, signal.SIGTERM)
DUPLICATE = 0.2  # seconds within which a launcher may forward a signal that the process already has
GRACE = 10.0  # seconds that a process which is asked to end, or whose ranks have ended, may take


class StopRequest:
    """The first of `NUMBERS` that this process gets, in `received`.

    It ends the process by SystemExit with 128 + its number, or after `GRACE` if the main thread does not react. Between `defer`
    and `end_deferring` the main thread reads `received` and ends by itself. A second SIGINT or SIGTERM ends the process at
    once, whatever hangs: Python calls a signal handler only when the main thread leaves a blocking call, so a thread waits.
    """

    def __init__(self) -> None:
        self.received = 0
        self._notice: str | None = None
        self._deferred, self._deadline = False, float("inf")
        self._terminals: list[int] = []
        self._stack, self._installed = contextlib.ExitStack(), False

    def install(self) -> bool:
        """Replace the handlers; False if they are already."""
        if self._installed:
            return False
        self._installed, self.received, self._deadline = True, 0, float("inf")
        self._stack.callback(setattr, self, "_installed", False)
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._stack.callback(writer.close)  # which ends the thread
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False))
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        for number in NUMBERS:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                self._stack.callback(signal.signal, number, signal.signal(number, self._receive))
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return True

    def uninstall(self) -> None:
        self._stack.close()

    def defer(self, notice: str | None = None) -> None:
        """From now on the main thread acts on `received` itself; `notice` is printed at the first signal."""
        self._notice, self._deferred = notice, True

    def end_deferring(self) -> None:
        self._notice, self._deferred = None, False
        if self.received:
            self._deadline = time.monotonic() + GRACE

    def _receive(self, number: int, frame: Any) -> None:
        self._silence(number)
        if not self.received:
            self.received = number
            if not self._deferred:
                raise SystemExit(128 + number)

    def _silence(self, number: int) -> None:
        """Write nothing more to a terminal that has closed, which would be an error."""
        if number == getattr(signal, "SIGHUP", None):
            with open(os.devnull, "wb") as null:
                for fd in self._terminals:
                    os.dup2(null.fileno(), fd)

    def _watch(self, reader: socket.socket) -> None:
        first, since = 0, 0.0
        with reader:
            while True:
                try:
                    number = reader.recv(1)
                except TimeoutError:
                    if time.monotonic() > self._deadline:
                        end_now(128 + first)
                    continue
                if not number:
                    return
                if number[0] not in NUMBERS:
                    continue
                self._silence(number[0])
                if not first:
                    first, since = number[0], time.monotonic()
                    reader.settimeout(1.0)
                    if not self._deferred:
                        self._deadline = since + GRACE
                    if self._notice:
                        print(f"\n{self._notice}", file=sys.stderr, flush=True)
                elif number[0] in INSISTING and time.monotonic() - since > DUPLICATE:
                    end_now(128 + number[0])


STOP = StopRequest()  # of this process


def ignore_signals(worker: int) -> None:
    """Let a loader process live until the run has saved: a terminal or a scheduler signals it too."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def end_now(code: int) -> NoReturn:
    """End this process from any thread, and the processes that help it."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)

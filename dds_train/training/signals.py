"""Ctrl-C and SIGTERM: the first is a request to stop, the second ends the process."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
DUPLICATE = 0.2  # seconds within which a launcher may forward a signal that the process already has


class StopRequest:
    """SIGINT or SIGTERM in `received`, for the main thread to act on. A second one ends the process at once, whatever hangs.

    A thread waits for the second one: Python calls a signal handler only when the main thread leaves a blocking call.
    """

    def __init__(self) -> None:
        self.received = 0
        self._stack = contextlib.ExitStack()

    def install(self, notice: str | None = None) -> None:
        """Replace the handlers; `notice` is printed at the first signal."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._stack.callback(writer.close)  # which ends the thread
        self._stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False))
        for number in NUMBERS:
            self._stack.callback(signal.signal, number, signal.signal(number, self._receive))
        threading.Thread(target=_end_at_second_signal, args=(reader, notice), daemon=True).start()

    def uninstall(self) -> None:
        self._stack.close()

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number


def _end_at_second_signal(reader: socket.socket, notice: str | None) -> None:
    first = None
    with reader:
        while number := reader.recv(1):
            if number[0] not in NUMBERS:
                continue
            if first is None:
                first = time.monotonic()
                if notice:
                    print(f"\n{notice}", file=sys.stderr, flush=True)
            elif time.monotonic() - first > DUPLICATE:
                for child in multiprocessing.active_children():
                    child.kill()
                os._exit(128 + number[0])

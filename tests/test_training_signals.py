"""The first signal is a request to stop, the second ends the process, also while its main thread is blocked."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dds_train.runs.files import is_alive
from dds_train.training.signals import StopRequest

BLOCKED = """
import ctypes, multiprocessing, time
from dds_train.runs.files import is_alive
from dds_train.training.signals import StopRequest

child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
StopRequest().install("first signal")
print(child.pid, flush=True)
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
while True:
    CALL
"""
# A call that a signal interrupts, and one in which the main thread runs no handler.
CALLS = {"interruptible": "time.sleep(60)", "uninterruptible": "libc.pthread_mutex_lock(mutex)"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_received_and_handlers_come_back(number: signal.Signals) -> None:
    before, threads, stop = signal.getsignal(number), threading.active_count(), StopRequest()
    stop.install()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # as torchrun and timeout forward it
    time.sleep(0.01)
    assert stop.received == number
    stop.uninstall()
    stop.uninstall()
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", CALLS)
def test_the_second_signal_ends_a_blocked_process_and_its_workers(
    first: signal.Signals, second: signal.Signals, call: str
) -> None:
    program = BLOCKED.replace("CALL", CALLS[call])
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(first)
    time.sleep(0.4)
    assert process.poll() is None
    process.send_signal(second)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + second
    assert errors.strip() == "first signal"
    deadline = time.monotonic() + 5
    while is_alive(worker):
        assert time.monotonic() < deadline

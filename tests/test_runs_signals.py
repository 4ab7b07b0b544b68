"""The first signal is a request to stop, a second one ends the process, also while its main thread is blocked."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dds_train.runs.files import is_alive
from dds_train.runs.signals import NUMBERS, StopRequest

BLOCKED = """
import ctypes, multiprocessing, time
from dds_train.runs.files import is_alive
from dds_train.runs.signals import StopRequest

child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
stop = StopRequest()
stop.install()
DEFER
print(child.pid, flush=True)
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
while True:
    CALL
"""
# A call that a signal interrupts, and one in which the main thread runs no handler.
CALLS = {"interruptible": "time.sleep(60)", "uninterruptible": "libc.pthread_mutex_lock(mutex)"}


def begin(*replaced: tuple[str, str], program: str = BLOCKED) -> subprocess.Popen[str]:
    for text, by in replaced:
        program = program.replace(text, by)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_received_and_handlers_come_back(number: signal.Signals) -> None:
    before, threads, stop = signal.getsignal(number), threading.active_count(), StopRequest()
    assert stop.install()
    assert not stop.install()
    stop.defer()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # as torchrun and timeout forward it
    time.sleep(0.01)
    assert stop.received == number
    stop.uninstall()
    stop.uninstall()
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1
    wait_for(lambda: threading.active_count() == threads)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_what_does_not_defer_it(number: signal.Signals) -> None:
    stop = StopRequest()
    stop.install()
    with pytest.raises(SystemExit) as end:
        os.kill(os.getpid(), number)
    assert end.value.code == 128 + number
    os.kill(os.getpid(), number)  # forwarded: the first one is at work
    stop.uninstall()


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    stop.install()
    os.kill(os.getpid(), signal.SIGHUP)
    stop.uninstall()
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", CALLS)
def test_the_second_signal_ends_a_blocked_process_and_its_workers(
    first: signal.Signals, second: signal.Signals, call: str
) -> None:
    process = begin(("CALL", CALLS[call]), ("DEFER", 'stop.defer("first signal")'))
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(first)
    time.sleep(0.4)
    process.send_signal(signal.SIGHUP)  # which is none to insist by
    time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(second)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + second
    assert errors.strip() == "first signal"
    wait_for(lambda: not is_alive(worker))


SAVED = "time.sleep(0.01); stop.received and (stop.end_deferring(), libc.pthread_mutex_lock(mutex))"


@pytest.mark.parametrize(("defer", "call"), [("", CALLS["uninterruptible"]), ("stop.defer()", SAVED)])
def test_a_process_that_cannot_end_is_ended(defer: str, call: str) -> None:
    """Blocked while it starts, as among ranks that wait for one another, or after it has saved."""
    short = f"import dds_train.runs.signals as signals; signals.GRACE = 1.0; {defer}"
    process = begin(("CALL", call), ("DEFER", short))
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
    wait_for(lambda: not is_alive(worker))


CLOSED = """
import sys, time
from dds_train.runs.signals import StopRequest
stop = StopRequest()
stop.install()
stop.defer("first signal")
open(sys.argv[1], "w").close()
while not stop.received:
    print(".", flush=True)
    time.sleep(0.01)
time.sleep(0.1)
print("saved", flush=True)
open(sys.argv[2], "w").close()
"""


def test_a_terminal_that_closes_is_a_signal_and_no_error(tmp_path: Path) -> None:
    ours, terminal = os.openpty()

    def control() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY)

    arguments = [sys.executable, "-c", CLOSED, tmp_path / "started", tmp_path / "saved"]
    files = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = subprocess.Popen(arguments, **files, start_new_session=True, preexec_fn=control)  # type: ignore[call-overload]
    os.close(terminal)
    wait_for((tmp_path / "started").exists)
    os.close(ours)
    assert process.wait(timeout=10) == 0
    assert (tmp_path / "saved").exists()


def test_a_rank_ends_with_the_process_that_started_it() -> None:
    wait = "print(1, flush=True); time.sleep(60)"
    rank = f"import time; from dds_train.runs.ranks import end_with_parent; end_with_parent(); {wait}"
    start = f"subprocess.Popen([sys.executable, '-c', {rank!r}])"
    launcher = f"import subprocess, sys, time; print({start}.pid, flush=True); time.sleep(60)"
    process = begin(program=launcher)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdout.readline()  # of the rank
    process.kill()
    process.communicate()
    wait_for(lambda: not is_alive(pid))

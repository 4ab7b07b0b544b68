"""The jobs of a sweep (``--multirun``), one after the other."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from dds_train.runs.signals import NUMBERS

STOPPED = [128 + number for number in NUMBERS]


def run_jobs(jobs: Sequence[Sequence[str]]) -> int:
    """Run each job's arguments as a process of its own; the exit code of the first that failed, or 0."""
    codes = []
    for number, job in enumerate(jobs, start=1):
        shown = " ".join(one for one in job if not one.startswith("--"))
        print(f"job {number} of {len(jobs)}: {shown}", flush=True)
        process = subprocess.Popen([sys.executable, "-m", "dds_train", *job])
        # Ctrl-C reaches the job too, which saves first; other signals are for this process alone.
        signal.signal(signal.SIGINT, lambda *_: None)
        for other in NUMBERS[1:]:
            signal.signal(other, partial(_pass_on, process))
        code = process.wait()
        codes.append(128 - code if code < 0 else code)
        if codes[-1]:
            print(f"error: job {number} of {len(jobs)} ended with exit code {codes[-1]}", file=sys.stderr, flush=True)
        if codes[-1] in STOPPED:
            break
    return next((code for code in codes if code), 0)


def _pass_on(process: subprocess.Popen[bytes], number: int, frame: object) -> None:
    process.send_signal(number)

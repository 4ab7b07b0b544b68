"""Start-up and memory of training on captions, by their number, with the bundled teacher.

    python scripts/measure_captions.py
    python scripts/measure_captions.py --teacher FOLDER --device cuda 1000 10000

For each number of captions, all different, a first and a second process prepare the task "{caption}" -> "a lion" as `fit` does,
and read the prompts of 100 batches of 8. The first writes embeddings of new captions. They are those of one prompt: the time
of the text encoder is worked out from that of 100. The second finds all of them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from dds_train.diffusion import DiffusionCheckpoint, TextEncoder
from dds_train.training.tasks import embed_tasks
from dds_train.translator import Task

BATCHES, BATCH = 100, 8
EMBEDDED = 100


def start(count: int, teacher: str, device: str) -> dict[str, float]:
    """Seconds of embedding a prompt, of a start and of reading a batch, and peak memory in MiB."""
    checkpoint = DiffusionCheckpoint(teacher, device)
    source: Any = SimpleNamespace(captions=[f"a photo of a cat, number {number}" for number in range(count)])
    tasks = {"lion": Task("{caption}", "a lion", "lion")}
    encoder, began = checkpoint.text_encoder(), time.perf_counter()
    prompts = [encoder.embed(text) for text in source.captions[:EMBEDDED]]
    embed = (time.perf_counter() - began) / EMBEDDED
    checkpoint.release("text_encoder")
    began = time.perf_counter()
    with mock.patch.object(TextEncoder, "embed", return_value=prompts[0]):
        bank = embed_tasks(tasks, source, checkpoint).to(torch.device(device))
    ready = time.perf_counter()
    for number in range(BATCHES):
        caption = torch.randint(count, (BATCH,), generator=torch.Generator().manual_seed(number))
        bank.conditions(torch.zeros(BATCH, dtype=torch.long), caption)
    read, memory = (time.perf_counter() - ready) / BATCHES, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"embed": embed, "start": ready - began, "batch": read, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="*", default=[1000, 10000, 100000])
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", action="store_true", help="one start in this process, as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(start(args.counts[0], args.teacher, args.device)))
        return
    print("| captions | first start, s: text encoder + file | second start, s | a batch, ms | peak memory, MiB | file, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    embedded = 0
    with tempfile.TemporaryDirectory() as cache:
        for count in args.counts:
            command = [sys.executable, __file__, "--one", str(count), "--teacher", args.teacher, "--device", args.device]
            printed = [
                subprocess.run(command, env={**os.environ, "DDS_CACHE": cache}, stdout=subprocess.PIPE, check=True).stdout
                for _ in range(2)
            ]
            first, second = map(json.loads, printed)
            size = sum(path.stat().st_size for path in Path(cache, "prompts").glob("*.sqlite")) / 2**20
            print(
                f"| {count:,} | {first['embed'] * (count - embedded):.0f} + {first['start']:.1f} | {second['start']:.1f} | "
                f"{1000 * second['batch']:.1f} | {max(first['memory'], second['memory']):.0f} | {size:.0f} |",
                flush=True,
            )
            embedded = count


if __name__ == "__main__":
    main()

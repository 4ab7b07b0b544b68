"""Speed of the shard loader beside plain webdataset's, and its start.

python scripts/measure_loader.py speed    samples per second: shards on this disk by both, in turns, then over HTTP
python scripts/measure_loader.py start    seconds and memory until the first sample of many, without and with kept indexes
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, default_collate

from dds_train.data.shards import ShardSource, decode_latent
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.runs.digest import SETTLED
from dds_train.training.data import SourceData

os.environ.setdefault("WDS_SECURE", "1")
import webdataset

BATCH = 32


def write_shards(folder: Path, shards: int, samples: int, side: int) -> None:
    """Shards of latents [4,side,side] with captions; all but the first are copies of it."""
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        for number in range(samples):
            content = io.BytesIO()
            np.save(content, np.random.default_rng(number).standard_normal((4, side, side), np.float32))
            for extension, data in (("z.npy", content.getvalue()), ("json", json.dumps({"prompt": "a cat"}).encode())):
                info = tarfile.TarInfo(f"{number:08d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for number in range(1, shards):
        shutil.copy(folder / "shard-00000.tar", folder / f"shard-{number:05d}.tar")


class SlowHandler(SimpleHTTPRequestHandler):
    """Files, with byte ranges, each after a delay in seconds."""

    protocol_version = "HTTP/1.1"
    delay = 0.0

    def do_GET(self) -> None:
        time.sleep(self.delay)
        content = Path(self.translate_path(self.path))
        if not content.is_file():
            self.send_error(404)
            return
        size = content.stat().st_size
        first, _, last = self.headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or size), size - 1) + 1
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with content.open("rb") as file:
            file.seek(start)
            self.wfile.write(file.read(end - start))

    def do_HEAD(self) -> None:
        time.sleep(self.delay)
        super().do_HEAD()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path, delay: float, port: Any) -> None:
    SlowHandler.delay = delay
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SlowHandler, directory=str(folder)))
    port.put(server.server_port)
    server.serve_forever()


def rate(batches: Iterable[Any], count: int) -> tuple[float, float]:
    """Samples per second of `count` batches: from the start of the workers, and from the first batch."""
    start, iterator = time.perf_counter(), iter(batches)
    next(iterator)
    first = time.perf_counter()
    for _ in range(count - 1):
        next(iterator)
    end = time.perf_counter()
    return count * BATCH / (end - start), (count - 1) * BATCH / (end - first)


def ours(path: str, cache: Path, workers: int, count: int) -> tuple[float, float]:
    source = ShardSource(path, DiffusionCheckpoint("bundled"), cache_dir=str(cache))
    for fetched in filter(Path.is_file, (cache / "shards").glob("*")):  # for their indexes; training fetches them again
        fetched.unlink()
    data = SourceData(source.dataset(), BATCH, 1, workers, seed=0)
    return rate(data.loader(0, count), count)


def plain(folder: Path, workers: int, count: int) -> tuple[float, float]:
    """webdataset as its documentation has it: shards in random order, samples through a shuffle buffer."""
    urls = sorted(map(str, folder.glob("*.tar")))
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000)
    latents = dataset.map(lambda sample: {"z": decode_latent(sample["z.npy"])}).batched(BATCH, collation_fn=default_collate)
    return rate(DataLoader(cast(Any, latents.repeat()), batch_size=None, num_workers=workers), count)


def speed(folder: Path, args: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    shards = folder / "shards"
    shards.mkdir()
    write_shards(shards, args.shards, args.samples, args.side)
    count = args.shards * args.samples // BATCH
    print(f"{args.shards} shards of {args.samples} samples, latents of [4,{args.side},{args.side}]; samples per second")
    port: Any = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(shards, args.delay / 1000, port), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get()}/shard-{{00000..{args.shards - 1:05d}}}.tar"
    print(f"workers | webdataset | this loader | ratio | over HTTP, {args.delay} ms a request, with its start")
    for workers in args.workers:
        pairs = [(plain(shards, workers, count)[1], ours(str(shards), folder, workers, count)[1]) for _ in range(args.repeats)]
        theirs, own = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(own / theirs for theirs, own in pairs)
        remote, _ = ours(url, folder / f"cache-{workers}", workers, count)
        print(f"{workers} | {theirs:.0f} | {own:.0f} | {ratio:.2f} | {remote:.0f}", flush=True)
    server.terminate()


def start(folder: Path, args: argparse.Namespace) -> None:
    (folder / "shards").mkdir()
    write_shards(folder / "shards", args.shards, args.samples, args.side)
    time.sleep(SETTLED)  # younger shards are not trusted
    print(f"{args.shards} shards of {args.samples} samples")
    for what in ("without an index", "with kept indexes"):
        process = multiprocessing.get_context("spawn").Process(target=start_once, args=(folder, what))
        process.start()
        process.join()


def start_once(folder: Path, what: str) -> None:
    begin = time.perf_counter()
    source = ShardSource(str(folder / "shards"), DiffusionCheckpoint("bundled"), cache_dir=str(folder))
    captions = len(source.captions)
    rate(SourceData(source.dataset(), BATCH, 8, 0, seed=0).loader(0, 1), 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: first batch of {captions} samples after {time.perf_counter() - begin:.1f} s, {memory:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, defaults in (("speed", (8, 1000, 32)), ("start", (1000, 1000, 8))):
        command = commands.add_parser(name)
        for option, default in zip(("--shards", "--samples", "--side"), defaults, strict=True):
            command.add_argument(option, type=int, default=default)
        command.add_argument("--folder", help="for the shards, which are removed at the end; default: that of temporary files")
        if name == "speed":
            command.add_argument("--delay", type=int, default=20, help="ms of each HTTP request")
            command.add_argument("--repeats", type=int, default=3, help="of which the medians are printed")
            command.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        {"speed": speed, "start": start}[args.command](Path(folder), args)


if __name__ == "__main__":
    main()

"""A web server on this machine, with byte ranges and the faults that tests ask for."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class RangeServer:
    """Serves the files of a folder.

    Args:
        delay: seconds before each answer.
        statuses: answered to the next GET requests, one each, in place of the file.
        cuts: bytes that the next GET requests get, one each, of those that are promised.
        missing: names that answer 503 for ever.
        ranges: whether byte ranges are understood.
    """

    folder: Path
    delay: float = 0
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    ranges: bool = True
    requests: list[str] = field(default_factory=list)  # "GET name"
    _server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def die(self) -> None:
        """No more answers, and no more connections."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def fetched(self, ending: str = ".tar") -> list[str]:
        return [
            name for request in self.requests if (name := request.removeprefix("GET ")) != request and name.endswith(ending)
        ]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    server = RangeServer(folder)
    server.start()
    yield server
    server.die()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, faults: RangeServer, *args: object) -> None:
        self.faults = faults
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.answer(with_content=True)

    def answer(self, with_content: bool) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        self.faults.requests.append(f"{self.command} {name}")
        time.sleep(self.faults.delay)
        path = self.faults.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        if name in self.faults.missing or (with_content and self.faults.statuses):
            self.send_error(503 if name in self.faults.missing else self.faults.statuses.pop(0))
            return
        content, wanted = path.read_bytes(), self.headers.get("Range") if self.faults.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if with_content:
            self.wfile.write(content[: self.faults.cuts.pop(0)] if self.faults.cuts else content)

    def log_message(self, format: str, *args: object) -> None:
        pass

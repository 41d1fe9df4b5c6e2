"""Images made on the spot, and a web server on the loopback that misbehaves on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[..., Path]


@pytest.fixture
def write_image() -> WriteImage:
    """Writes a small PNG whose content depends on `seed` alone."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
        return path

    return write


@dataclass
class Server:
    """What the server offers, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    #: After so many bytes each answer to a request breaks off: the connection is closed, or held in silence.
    breaks_after: int | None = None
    stalls: bool = False
    #: How many answers misbehave; the rest are honest.
    faults: int = 10**9
    resumable: bool = True
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    server: _Loopback

    def do_GET(self) -> None:
        state = self.server.state
        asked = self.headers.get("Range")
        state.ranges.append(asked)
        content = state.files.get(self.path.lstrip("/"))
        if state.status != 200 or content is None:
            self.send_error(state.status if state.status != 200 else 404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.resumable else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if state.breaks_after is not None and state.faults > 0:
            state.faults -= 1
            body = body[: state.breaks_after]
        self.wfile.write(body)
        self.wfile.flush()
        if state.stalls and len(body) < len(content) - start:
            state.closing.wait(20)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Loopback(ThreadingHTTPServer):
    daemon_threads = True
    state: Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on the loopback."""
    with _Loopback(("127.0.0.1", 0), _Handler) as loopback:
        loopback.state = Server(url=f"http://127.0.0.1:{loopback.server_port}/")
        thread = threading.Thread(target=loopback.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield loopback.state
        loopback.state.closing.set()
        loopback.shutdown()

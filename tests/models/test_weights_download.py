"""Pretrained weights through timm's hub code, against a real HTTP server on loopback in place of the hub."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

ASK = (
    "import sys\nfrom flowers_bench.models.weights.source import resolve_weights\nfrom flowers_bench.util.errors import UsageError\n"
    "try:\n    (found,) = resolve_weights('pretrained', 'test_resnet')\nexcept UsageError as error:\n    sys.exit(str(error))\n"
    "print(found.name, found.sha256)"
)
Hub = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub that serves one file; the callable sets how it behaves and asks for the weights in a new process."""
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    mode = ["good"]
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if mode[0] == "slow":
                over.wait(3.5)  # longer than a connection may take
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            if not self.path.endswith("/resolve/main/model.safetensors") or mode[0] == "missing":
                self.send_error(404)
                return
            sent = content[: len(content) // 2] if mode[0] in ("half", "stalls") else content
            etag = "0" * 64 if mode[0] == "wrong" else hashlib.sha256(content).hexdigest()
            self.send_response(200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(sent)
                if mode[0] == "stalls":
                    over.wait()

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
    }
    env.pop("HF_HUB_OFFLINE", None)

    def ask(how: str) -> subprocess.CompletedProcess[str]:
        mode[0] = how
        if how == "gone":
            server.shutdown()
            server.server_close()
        return subprocess.run(
            [sys.executable, "-c", ASK], env=env, capture_output=True, text=True, timeout=200, check=False
        )

    yield ask
    over.set()
    server.shutdown()


def test_download_is_named_checked_and_kept(hub: Hub, tmp_path: Path) -> None:
    done = hub("good")
    assert done.returncode == 0, done.stderr
    name, sha256 = done.stdout.split()
    assert name.startswith("test_resnet.")
    assert sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert hub("gone").stdout == done.stdout  # from the cache, without asking


def test_a_slow_network_is_a_network(hub: Hub, tmp_path: Path) -> None:
    assert hub("slow").stdout.split()[1] == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("how", ["missing", "gone", "wrong", "half", "stalls"])
def test_failed_download_says_what_to_do_and_keeps_nothing(hub: Hub, tmp_path: Path, how: str) -> None:
    done = hub(how)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    if how == "wrong":
        assert "wrong checksum" in done.stderr
    else:
        assert "hf download" in done.stderr
        assert "--weights none" in done.stderr
    assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file() and p.stat().st_size > 100_000]

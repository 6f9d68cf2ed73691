"""Servers in this process that tests of remote data talk to: S3's interface (moto), and a web server with faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kdcache import remote

KEYS = {
    "AWS_ACCESS_KEY_ID": "of-the-test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Bucket:
    """A bucket; ``client`` is boto3's, independent of what is tested."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name, self.url = client, name, f"s3://{name}"

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def upload(self, folder: Path, prefix: str = "") -> None:
        """All files below a folder."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put(prefix + path.relative_to(folder).as_posix(), path.read_bytes())

    def get(self, key: str) -> bytes:
        """Read an object."""
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def keys(self) -> list[str]:
        """All keys."""
        return sorted(o["Key"] for o in self.client.list_objects_v2(Bucket=self.name).get("Contents", []))


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server."""
    reason = "needs moto[s3,server] and s3fs: pip install 'kdcache[test]'"
    moto = pytest.importorskip("moto.server", reason=reason)
    s3fs = pytest.importorskip("s3fs", reason=reason)
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3fs.S3FileSystem.clear_instance_cache()
    yield f"http://{host}:{port}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, which this process and those that it starts reach with credentials of their environment."""
    import boto3

    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    client = boto3.client("s3")
    name = f"bucket-{time.monotonic_ns()}"
    client.create_bucket(Bucket=name)
    return Bucket(client, name)


class _Handler(SimpleHTTPRequestHandler):
    server: WebServer

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def send_header(self, keyword: str, value: str) -> None:
        """All, or all but the time of change."""
        if self.server.dated or keyword != "Last-Modified":
            super().send_header(keyword, value)

    def do_GET(self) -> None:
        """A file, or the fault that is set for its path."""
        self.server.requests.append(("GET", self.path))
        fault = self.server.faults.get(self.path)
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "short":
            content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "slow":
            time.sleep(1.0)
            self.close_connection = True
        elif not self._part(body=True):
            super().do_GET()

    def do_HEAD(self) -> None:
        """As of a file that is there; refusals are those of ``GET``."""
        self.server.requests.append(("HEAD", self.path))
        fault = self.server.faults.get(self.path)
        if isinstance(fault, int) and fault < 500:
            self.send_error(fault)
        elif not self._part(body=False):
            super().do_HEAD()

    def _part(self, body: bool) -> bool:
        """Answer a request for a part of a file, if it is one and the server does."""
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if not (self.server.parts and wanted):
            return False
        start, stop = map(int, wanted.split("-"))
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop}/{len(content)}")
        self.send_header("Content-Length", str(stop + 1 - start))
        self.end_headers()
        if body:
            self.wfile.write(content[start : stop + 1])
        return True


class WebServer(ThreadingHTTPServer):
    """Python's file server; ``faults``: path → status, ``short`` or ``slow``; ``parts``: it answers to ``Range``;
    ``dated``: it states times of change."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.faults: dict[str, int | str] = {}
        self.requests: list[tuple[str, str]] = []
        self.parts, self.dated = False, True
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


@contextmanager
def served(folder: Path) -> Iterator[WebServer]:
    """A folder on the web."""
    pytest.importorskip("aiohttp", reason="needs aiohttp and fsspec: pip install 'kdcache[test]'")
    with WebServer(folder) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()

"""A real S3 server in a process of its own, whose requests can be made to fail."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
import uuid

from plsc.remote.folder import RemoteFolder
from tests._support.ranks import WORKERS

KEY, SECRET = "AKIAPLSCTESTKEY", "plsc-test-secret-0123456789"


class S3:
    """The server; `url` is a new bucket for each test."""

    def __init__(self, port):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.url = ""

    def new_bucket(self):
        name = f"plsc-{uuid.uuid4().hex[:12]}"
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT"), timeout=30).close()
        self.url = f"s3://{name}"

    def fail(self, kind, count=1, *, methods=("GET", "HEAD", "PUT", "POST", "DELETE"), match=""):
        """Let the next `count` requests fail, of those with such a method and with `match` in their path."""
        self._ask({"kind": kind, "count": count, "methods": list(methods), "match": match})

    def failed(self):
        """How many requests were made to fail since `fail`."""
        return self._ask({})

    def _ask(self, fault):
        request = urllib.request.Request(f"{self.endpoint}/plsc-faults", json.dumps(fault).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def s3_server():
    process = subprocess.Popen(
        [sys.executable, str(WORKERS / "s3_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield S3(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(20)


def fill(url, files):
    """Write {name: bytes} into a remote folder, by the file system alone."""
    folder = RemoteFolder(url)
    for name, content in files.items():
        path = folder._path(name)
        if "://" in url and not url.startswith("s3"):
            folder._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        folder._system.pipe_file(path, content)


def names(url):
    return sorted(RemoteFolder(url).files())

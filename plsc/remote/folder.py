"""A remote folder: what it holds, and reading, writing and deleting files in it, each with retries."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from plsc.errors import ConfigError, MissingDependencyError, StorageError
from plsc.remote.retrying import attempt, storage_error
from plsc.utils.lazy import require
from plsc.utils.locations import credentials_of, is_remote, join, without_credentials

# Protocols whose first part of a path is a bucket, which is never made here. They have no folders to make either.
_BUCKETS = frozenset({"s3", "s3a", "oss", "gs", "gcs"})
_INSTALL = {
    "s3": "'.[remote]'",
    "s3a": "'.[remote]'",
    "oss": "ossfs",
    "hdfs": "pyarrow (and Hadoop's client with Java: JAVA_HOME, HADOOP_HOME and CLASSPATH)",
    "gs": "gcsfs",
    "gcs": "gcsfs",
}
# botocore and s3fs try a request again, such as that of one part of a file; `attempt` tries a whole file again. The
# three multiply, so that each has few attempts. Times are in seconds.
_S3_LIMITS = {"connect_timeout": 20, "read_timeout": 60, "retries": {"total_max_attempts": 3, "mode": "standard"}}
_S3FS_ATTEMPTS = 2


class RemoteFile(NamedTuple):
    """What a listing says of a file: its size in bytes, and what changes when its content does."""

    size: int
    tag: str


class RemoteFolder:
    """A folder behind a URL. Objects of one folder may be used by several threads.

    Args:
        url: as 's3://bucket/run'. User and password in it are kept apart, see `plsc.utils.locations`.

    Attributes:
        url: without credentials.

    Raises:
        ConfigError: fsspec does not know the protocol.
        MissingDependencyError: a package for the protocol is not installed.
        StorageError: the service refuses the connection.

    Example:
        >>> RemoteFolder("s3://bucket/run").files()
        {'7/manifest.json': RemoteFile(size=5120, tag='"9b2c..."'), ...}
    """

    def __init__(self, url: str) -> None:
        self.url = without_credentials(url)
        self._protocol = self.url.partition("://")[0].lower()
        self._system, self._root = _open(self.url, self._protocol)

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(join(self.url, name))

    def files(self) -> dict[str, RemoteFile]:
        """All files in the folder and in the folders in it, by their names relative to it; none where it is missing.

        Raises:
            StorageError: the bucket does not exist, access is denied, or the service cannot be reached.
        """

        def find() -> dict[str, Any]:
            self._system.invalidate_cache()
            try:
                found: dict[str, Any] = self._system.find(self._root, detail=True)
            except FileNotFoundError:
                found = {}
            if not found and self._protocol in _BUCKETS:
                with contextlib.suppress(PermissionError):  # it may be allowed to list the folder alone
                    self._system.info(bucket)
            return found

        bucket = self._root.split("/")[0]
        try:
            found = attempt(find, self.url, "cannot be listed")
        except FileNotFoundError:
            raise StorageError(
                f"{self.url}: the bucket {bucket!r} does not exist; make it, or correct the name"
            ) from None
        prefix = self._root.rstrip("/") + "/"
        return {
            path.removeprefix(prefix): RemoteFile(int(info["size"] or 0), _tag_of(info))
            for path, info in sorted(found.items())
            if path.startswith(prefix) and info["type"] == "file" and not path.endswith("/")
        }

    def read(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: there is none of that name.
            StorageError: it cannot be read.
        """
        content: bytes = attempt(
            lambda: self._system.cat_file(self._path(name)), join(self.url, name), "cannot be read"
        )
        return content

    def fetch(self, name: str, to: Path, size: int) -> None:
        """Copy a file of `size` bytes to a local path, whose folder exists.

        Raises:
            FileNotFoundError: there is none of that name.
            StorageError: it cannot be read, or not be written here.
        """
        url = join(self.url, name)

        def get() -> None:
            self._system.get_file(self._path(name), str(to))
            _check_size(to.stat().st_size, size)

        attempt(get, url, f"cannot be copied to {to}")

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file into the folder; large ones in parts. A file of that name is replaced.

        Raises:
            StorageError: it cannot be written.
        """
        url = join(self.url, name)

        def put() -> None:
            if self._protocol not in _BUCKETS:
                self._system.makedirs(os.path.dirname(self._path(name)), exist_ok=True)
            self._system.put_file(str(source), self._path(name))
            self._system.invalidate_cache()
            _check_size(int(self._system.info(self._path(name))["size"]), source.stat().st_size)

        if not source.is_file():
            raise StorageError(f"{source}: vanished before it was copied to {url}")
        try:
            attempt(put, url, "cannot be written")
        except FileNotFoundError as error:
            raise storage_error(error, url, "cannot be written: is there such a bucket?") from None

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that do not exist are passed over.

        Raises:
            StorageError: one cannot be deleted.
        """
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                attempt(
                    functools.partial(self._system.rm_file, self._path(name)), join(self.url, name), "cannot be deleted"
                )

    def delete_all(self, *, first: str) -> None:
        """Delete the folder with all it holds, the file `first` before the others.

        Raises:
            StorageError: something cannot be deleted.
        """
        self.delete([first, *(name for name in self.files() if name != first)])
        if self._protocol not in _BUCKETS and self._system.isdir(self._root):
            attempt(lambda: self._system.rm(self._root, recursive=True), self.url, "cannot be deleted")

    def check_writable(self) -> None:
        """Write a small file and delete it.

        Raises:
            StorageError: as for `upload`.
        """
        name = f".plsc-trial-{os.getpid()}"
        self.files()  # names a bucket that does not exist
        path = self._path(name)

        def write() -> None:
            if self._protocol not in _BUCKETS:
                self._system.makedirs(self._root, exist_ok=True)
            self._system.pipe_file(path, b"plsc")

        try:
            attempt(write, self.url, "cannot be written to")
        except FileNotFoundError as error:
            raise storage_error(error, self.url, "cannot be written to") from None
        self.delete([name])

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def _open(url: str, protocol: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    fsspec = require("fsspec", "'.[remote]'", purpose=f"{protocol}://")
    require("tenacity", "'.[remote]'", purpose=f"{protocol}://")
    if not is_remote(url) or "::" in url or protocol not in fsspec.available_protocols():
        raise ConfigError(f"{url}: expected a URL as s3://bucket/folder, of a protocol that fsspec knows")
    if protocol == "hdfs" and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(f"hdfs:// needs pyarrow, which is not installed: pip install {_INSTALL['hdfs']}")
    try:
        system, root = fsspec.url_to_fs(url, **_options(url, protocol))
    except ImportError as error:
        install = _INSTALL.get(protocol, f"what fsspec asks for: {error}")
        raise MissingDependencyError(
            f"{protocol}:// needs a package that is not installed: pip install {install}"
        ) from None
    except Exception as error:  # the libraries of a protocol have exceptions of their own
        raise storage_error(error, url, "cannot be opened") from None
    if protocol in ("s3", "s3a"):
        system.retries = _S3FS_ATTEMPTS
        # They say where credentials were found, which Paddle's handler of all logs would show in every run.
        for library in map(logging.getLogger, ("aiobotocore", "botocore")):
            library.setLevel(library.level or logging.WARNING)
    return system, str(root)


def _options(url: str, protocol: str) -> dict[str, Any]:
    """What the URL says, and limits of time; fsspec adds what its configuration says."""
    import fsspec.config

    options: dict[str, Any] = {}
    configured = fsspec.config.conf.get(protocol, {})
    if protocol in ("s3", "s3a"):
        options["config_kwargs"] = {**_S3_LIMITS, **configured.get("config_kwargs", {})}
    given = credentials_of(url)
    if given is not None:
        if protocol in _BUCKETS:
            options.update(key=given.user, secret=given.password)
        elif protocol == "hdfs":  # its client takes no password
            options.update(user=given.user)
        else:
            options.update(username=given.user, password=given.password)
    return options


def _tag_of(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in ("ETag", "mtime", "LastModified", "created") if info.get(key)), "")


def _check_size(found: int, expected: int) -> None:
    if found != expected:
        raise OSError(errno.EIO, f"found {found} bytes after the copy, expected {expected}")

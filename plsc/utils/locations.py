"""Names of places: local paths, and URLs of remote folders, whose credentials are kept apart from everything shown.

A URL of a setting is replaced by one without user and password as soon as it is given. What was cut off stays in this
process, where `plsc.remote` finds it, so that no log, manifest, report or message can hold it.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# `Path("s3://bucket/x")` reads 's3:/bucket/x'.
_COLLAPSED = re.compile(r"(s3a?|oss|hdfs|gcs|gs|memory):/(?!/)")
# A number after the colon is a port, as in hdfs://host:9000/folder.
_USER_INFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s/@:,]+)(?::(?!\d+(?:[/\s]|$))([^@\s]*))?@")


class Credentials(NamedTuple):
    """What a URL held before its '@'."""

    user: str
    password: str | None


# By protocol and host, as 's3://bucket'. Forked processes inherit it.
_KEPT: dict[str, Credentials] = {}


def is_remote(path: object) -> bool:
    """Whether a location is a URL, as 's3://bucket/faces'; 'file:///data/faces' is one too."""
    return _URL.match(str(path)) is not None


def without_credentials(text: str) -> str:
    """`text` without the user and the password of the URLs in it.

    Example:
        >>> without_credentials("s3://key:secret@bucket/run")
        's3://bucket/run'
    """
    return _USER_INFO.sub(r"\1", text)


def keep_credentials(location: str) -> str:
    """A URL without the user and the password in it, which `credentials_of` returns from now on; a path as it is.

    Several locations may be separated by commas. A URL that `pathlib.Path` changed, as 's3:/bucket', is put right.
    """
    location = re.sub(rf"(^|,){_COLLAPSED.pattern}", r"\1\2://", location)
    for found in _USER_INFO.finditer(location):
        protocol, user, password = found.groups()
        host = re.split(r"[/,]", location[found.end() :], maxsplit=1)[0]
        keep_user(f"{protocol}{host}", user, password)
    return without_credentials(location)


def keep_user(url: str, user: str, password: str | None = None) -> None:
    """Keep the credentials for a protocol and a host, as 'hdfs://host:9000'."""
    _KEPT[_host_of(url)] = Credentials(unquote(user), None if password is None else unquote(password))


def credentials_of(url: str) -> Credentials | None:
    """The credentials that were given for the protocol and the host of a URL."""
    return _KEPT.get(_host_of(url))


def join(url: str, *names: str) -> str:
    """A URL of something in a remote folder."""
    return "/".join([url.rstrip("/") if not url.endswith("://") else url[:-1], *(name.strip("/") for name in names)])


def split(url: str) -> tuple[str, str]:
    """(the URL of the folder that holds something, its name)."""
    protocol, _, path = url.partition("://")
    folder, _, name = path.rstrip("/").rpartition("/")
    return f"{protocol}://{folder}", name


def _host_of(url: str) -> str:
    protocol, _, path = url.partition("://")
    return f"{protocol}://{path.split('/')[0]}"

"""The gallery that a server searches: that of its folder, opened again after another process has saved it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

from plsc.errors import ServingError
from plsc.inference.gallery import Gallery
from plsc.inference.gallery_files import ABOUT_FILE
from plsc.inference.model_card import ModelCard
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_INTERVAL = 1.0  # seconds between two looks at the folder
_PAUSE = 10.0  # seconds until a gallery that cannot be opened is tried again: it may be being copied there


class _Fault(NamedTuple):
    """Why a version of a gallery cannot be opened, and until when it is not tried again."""

    version: tuple[int, ...] | None = None
    message: str = ""
    until: float = 0.0


class LiveGallery:
    """The gallery of a folder, as it was at the latest look.

    Args:
        folder: of the gallery.
        card: the model's that the gallery must be of.

    Attributes:
        current: the gallery. A search that has begun with an earlier one goes on with that.

    Raises:
        ServingError: the folder holds no gallery, it is damaged, or it is of another model.
    """

    def __init__(self, folder: Path, card: ModelCard) -> None:
        self._folder, self._card = folder, card
        self._seen, self._faulty = _version(folder), _Fault()
        self.current: Gallery = self._open()

    async def follow(self) -> None:
        """Look at the folder about once a second until cancelled; read what has changed in a thread."""
        while True:
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # whatever it is, later versions are to be seen
                log.exception("%s: the gallery cannot be followed; trying again", self._folder)
            await asyncio.sleep(_INTERVAL)

    def refresh(self) -> None:
        """Open the folder's gallery if it has changed. If that fails, it is logged and the earlier stays."""
        version = _version(self._folder)  # before opening, so that no later change is missed
        if version == self._seen or (version == self._faulty.version and time.monotonic() < self._faulty.until):
            return
        try:
            self.current = self._open()
        except ServingError as error:
            if self._faulty.message != str(error):
                kept = counted(len(self.current), "entry")
                log.error("%s. The server keeps the gallery that it has, of %s", error, kept)
            self._faulty = _Fault(version, str(error), time.monotonic() + _PAUSE)
            return
        self._seen, self._faulty = version, _Fault()
        log.info("%s: the gallery has changed; it has %s now", self._folder, counted(len(self.current), "entry"))

    def _open(self) -> Gallery:
        gallery = Gallery.open(self._folder)
        gallery.check_model(self._card)
        return gallery


def _version(folder: Path) -> tuple[int, ...]:
    """Other numbers after each save; none where there is no gallery."""
    try:
        status = os.stat(folder / ABOUT_FILE)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

"""Checkpoints in a remote folder: which of them are whole, and the thread that uploads those of a run.

A run writes its checkpoints to a local folder, the stage, as it would without a remote one. Each that is complete is
uploaded in the background, its manifest last. A remote checkpoint counts where its manifest can be read and every file
has the size that the manifest lists.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plsc.checkpoint import MANIFEST, is_checkpoint_name, list_checkpoints, order
from plsc.config import Config
from plsc.engine.about import METRICS
from plsc.engine.observers.loggers.base import LOGS
from plsc.engine.observers.metrics_file import METRICS_FILE, SUPERSEDED_FILE
from plsc.engine.observers.metrics_table import TABLE_FILE
from plsc.engine.observers.run_notes import NOTES_FILE
from plsc.engine.observers.training_doctor import FINDINGS_FILE
from plsc.engine.retention import best_of, superseded
from plsc.errors import CheckpointError, PLSCError, StorageError
from plsc.remote.cache import Cache
from plsc.remote.folder import RemoteFile, RemoteFolder
from plsc.remote.retrying import explain
from plsc.remote.upload import upload_folder
from plsc.utils.atomic import lock_folder, partial_path, write_folder
from plsc.utils.hints import setter
from plsc.utils.locations import split

log = logging.getLogger("plsc")

_RUN_FILES = (METRICS_FILE, SUPERSEDED_FILE, TABLE_FILE, NOTES_FILE, FINDINGS_FILE)
# In the stage: what is being uploaded, so that a checkpoint that is pruned meanwhile stays whole.
_LINKS = ".plsc-uploads"
_FETCHING = ".plsc-fetching"
# Until a failed upload is tried again, unless the next checkpoint is complete before.
RETRY_SECONDS = 60.0


def list_remote_checkpoints(remote: RemoteFolder) -> list[str]:
    """The names of the whole checkpoints in a remote folder, in the order in which training reached them.

    Raises:
        StorageError: the folder cannot be listed, or a manifest not be read.
    """
    by_name: dict[str, dict[str, RemoteFile]] = {}
    for path, file in remote.files().items():
        name, _, inner = path.partition("/")
        if inner and is_checkpoint_name(name):
            by_name.setdefault(name, {})[inner] = file
    return sorted((name for name, files in by_name.items() if _is_whole(remote / name, files)), key=_order)


def fetch_checkpoint(url: str, cache: Cache) -> Path:
    """Copy a remote checkpoint, or the newest in a remote folder, to the cache.

    Returns:
        The local folder, whose name is that of the checkpoint.

    Raises:
        CheckpointError: there is no whole checkpoint.
        StorageError: it cannot be read, or does not fit into the cache.
    """
    folder, name = find_checkpoint(url)
    return cache.fetch(folder, lambda file: file.startswith(f"{name}/")) / name


def find_checkpoint(url: str) -> tuple[RemoteFolder, str]:
    """(the remote folder of checkpoints, the name of one), for the URL of either; the newest whole one of a folder.

    Raises:
        CheckpointError: there is no whole checkpoint.
        StorageError: the folder cannot be read.
    """
    parent, name = split(url)
    if is_checkpoint_name(name) and (folder := RemoteFolder(parent)) and name in list_remote_checkpoints(folder):
        return folder, name
    folder = RemoteFolder(url)
    whole = list_remote_checkpoints(folder)
    if not whole:
        begun = sorted(
            {path.partition("/")[0] for path in folder.files() if is_checkpoint_name(path.partition("/")[0])}
        )
        held = f"; {', '.join(begun)} {'is' if len(begun) == 1 else 'are'} not whole: an upload was cut off"
        raise CheckpointError(
            f"{folder.url} holds no whole checkpoint{held if begun else ''}; name another folder with "
            f"{setter('checkpoint_dir')}"
        )
    return folder, whole[-1]


def _is_whole(checkpoint: RemoteFolder, files: dict[str, RemoteFile]) -> bool:
    if MANIFEST not in files:
        return False
    try:
        sizes = _listed_sizes(json.loads(checkpoint.read(MANIFEST)))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all(name in files and files[name].size == size for name, size in sizes.items())


def _listed_sizes(manifest: Any) -> dict[str, int]:
    """Bytes by file. Later versions of the manifest list more of a file than its size."""
    return {
        name: int(listed["bytes"] if isinstance(listed, dict) else listed) for name, listed in manifest["files"].items()
    }


def _is_log(name: str) -> bool:
    """Whether a remote file is one of a logger."""
    parts = name.split("/")
    return parts[0] == LOGS and ".." not in parts


def _order(name: str) -> tuple[int, int]:
    return order(Path(name))


class Uploader:
    """Uploads the checkpoints of a run in a thread, and deletes those that the run prunes.

    A failure costs no training: the checkpoint stays in the stage, and the upload is tried again after
    `RETRY_SECONDS`, after the next checkpoint and at the end.

    Args:
        url: the remote folder of the run's checkpoints.
        stage: the local folder in which they are written; made where it does not exist.
        config: says which checkpoints stay in the remote folder where it holds some of earlier runs.
        is_temporary: whether the stage is removed once all is uploaded.

    Example:
        >>> with Uploader("s3://bucket/run", Path("/tmp/run"), config=Config()) as uploads:
        ...     uploads.on_complete(Path("/tmp/run/7"))
    """

    def __init__(self, url: str, stage: Path, *, config: Config, is_temporary: bool = False) -> None:
        self.remote, self.stage = RemoteFolder(url), stage
        self._config, self._is_temporary = config, is_temporary
        self._changed = threading.Condition()
        self._pending: list[str] = []
        self._doomed: list[str] = []
        self._added: list[Path] = []
        self._current: str | None = None
        self._has_news = self._is_ending = self._prunes = False
        self._failure: PLSCError | None = None
        self._thread: threading.Thread | None = None
        self._uploaded: set[str] = set()
        self._logs: dict[str, tuple[int, int]] = {}  # size and time of files of loggers that are uploaded

    def __enter__(self) -> Uploader:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
            return
        try:
            self.finish()
        except PLSCError as error:  # the exception under way says more
            log.error("%s", error)

    def open_newest(self) -> Path | None:
        """Bring the newest whole checkpoint to the stage, unless it is there; with it the run's metrics.

        A checkpoint that a killed run completed in the stage and did not upload counts too. Each process of a machine
        may call this: one copies, the others wait.

        Returns:
            The checkpoint in the stage; None where there is none.

        Raises:
            StorageError: the remote folder cannot be read.
        """
        whole = list_remote_checkpoints(self.remote)
        local = list_checkpoints(self.stage)
        if local and (not whole or order(local[-1]) >= _order(whole[-1])):
            if local[-1].name not in whole:
                log.info("%s was not uploaded to %s before; going on from it", local[-1], self.remote.url)
            self._fetch_run_files()
            return local[-1]
        return self.fetch(whole[-1]) if whole else None

    def fetch(self, name: str) -> Path:
        """Bring a remote checkpoint to the stage, unless it is there; with it the run's metrics.

        Raises:
            StorageError: it cannot be read.
            CheckpointError: the stage cannot be written to.
        """
        self._fetch_run_files()
        folder, checkpoint = self.stage / name, self.remote / name
        with self._fetching():
            if not (folder / MANIFEST).is_file():
                log.info("copying %s to %s", checkpoint.url, folder)
                with write_folder(folder, CheckpointError, replace=False) as write:
                    for file, listed in checkpoint.files().items():
                        (write.path / file).parent.mkdir(parents=True, exist_ok=True)
                        checkpoint.fetch(file, write.path / file, listed.size)
        return folder

    def check(self, position: tuple[int, int]) -> None:
        """Find out before the first step whether the remote folder takes this run's checkpoints.

        Args:
            position: (epoch, steps of it done) where training begins.

        Raises:
            CheckpointError: it holds checkpoints of later training.
            StorageError: it cannot be written to.
        """
        self.remote.check_writable()
        newer = [name for name in list_remote_checkpoints(self.remote) if _order(name) > position]
        if newer:
            raise CheckpointError(
                f"{self.remote.url}/{newer[-1]} is a checkpoint of later training than this run starts from; to go on "
                f"from it: {setter('auto_resume', True)} or {setter('checkpoint_dir', self.remote.url)}; to start a "
                f"new run: choose another folder with {setter('model_save_dir')}, or move the old folder away"
            )
        self._fetch_run_files()
        left = [path for path in list_checkpoints(self.stage) if order(path) <= position]
        for path in left:  # a killed run may have left one that was not uploaded
            if path.name not in list_remote_checkpoints(self.remote):
                self.on_complete(path)

    def on_complete(self, path: Path, *, prunes: bool = True) -> None:
        """Upload a checkpoint in the background. Its files may be deleted at once: links to them are kept.

        Args:
            path: in the stage.
            prunes: whether those of earlier runs that are no longer kept are deleted after it.
        """
        link = self.stage / _LINKS / path.name
        shutil.rmtree(link, ignore_errors=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copytree(path, link, copy_function=os.link)
        except OSError:  # a file system without hard links
            shutil.rmtree(link, ignore_errors=True)
            shutil.copytree(path, link)
        with self._changed:
            self._pending.append(path.name)
            self._prunes = prunes
            self._has_news = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="plsc-uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def on_added(self, path: Path) -> None:
        """Upload a file that was added to a checkpoint after that was complete, as the results of its verification."""
        with self._changed:
            self._added.append(path)
            self._has_news = True
            self._changed.notify_all()

    def on_prune(self, path: Path) -> None:
        """Delete a checkpoint from the remote folder, once all newer ones are uploaded."""
        with self._changed:
            if path.name in self._pending and path.name != self._current:
                self._pending.remove(path.name)
                shutil.rmtree(self.stage / _LINKS / path.name, ignore_errors=True)
                return
            self._doomed.append(path.name)
            self._has_news = True
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until everything is uploaded. Idempotent.

        Raises:
            CheckpointError: an upload failed again; says where the checkpoint is.
        """
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        if self._thread is not None:
            if self._pending:
                log.info("waiting until the checkpoints are uploaded to %s", self.remote.url)
            self._thread.join()
        if self._failure is not None:
            left = ", ".join(self._pending)
            raise CheckpointError(
                f"{self.remote.url}: not uploaded: {left or 'the metrics'}: {self._failure}. Nothing is lost: "
                f"{self.stage} holds it; the next run into the same folder uploads it"
            )
        if self._is_temporary:
            self._remove_stage()

    def _remove_stage(self) -> None:
        try:
            whole = set(list_remote_checkpoints(self.remote))
        except StorageError as error:  # all is uploaded, and the stage costs space only
            log.warning("%s; %s stays", error, self.stage)
            return
        if all(path.name in whole for path in list_checkpoints(self.stage)):
            shutil.rmtree(self.stage, ignore_errors=True)

    def _work(self) -> None:
        """The thread: upload, then delete what is pruned, until the run ends and nothing is left."""
        is_last = False
        while not is_last:
            is_last = self._wait()
            try:
                while self._upload_next():
                    pass
                self._upload_added()
                self._delete_doomed()
                if is_last:
                    self._upload_run_files()
                self._failure = None
            except PLSCError as error:
                self._failed(error)
            except Exception as error:  # whatever it is, training goes on
                self._failed(StorageError(f"{self.remote.url}: {explain(error)}"))

    def _failed(self, error: PLSCError) -> None:
        self._failure = error
        log.warning("%s; the checkpoint stays in %s, and the upload is tried again", error, self.stage)

    def _wait(self) -> bool:
        """Wait until there is something to do; returns whether the run is over."""
        with self._changed:
            timeout = RETRY_SECONDS if self._failure else None
            self._changed.wait_for(lambda: self._has_news or self._is_ending, timeout)
            self._has_news = False
            return self._is_ending

    def _upload_next(self) -> bool:
        """Upload the oldest checkpoint that waits; returns whether there was one."""
        with self._changed:
            if not self._pending:
                return False
            self._current = name = self._pending[0]
        link = self.stage / _LINKS / name
        try:
            upload_folder(link, self.remote / name, last=MANIFEST)
            self._upload_run_files()
            with self._changed:
                self._pending.remove(name)
                self._uploaded.add(name)
            shutil.rmtree(link, ignore_errors=True)
            log.info("uploaded %s/%s", self.remote.url, name)
        finally:
            self._current = None
        return True

    def _upload_added(self) -> None:
        with self._changed:
            added = list(self._added)
        for path in added:
            if path.is_file():  # its checkpoint may be pruned
                self.remote.upload(path, f"{path.parent.name}/{path.name}")
        with self._changed:
            self._added = self._added[len(added) :]

    def _delete_doomed(self) -> None:
        with self._changed:
            doomed = list(self._doomed)
        for name in [*doomed, *self._superseded_of_earlier_runs(doomed)]:
            (self.remote / name).delete_all(first=MANIFEST)
        with self._changed:
            self._doomed = self._doomed[len(doomed) :]

    def _superseded_of_earlier_runs(self, doomed: list[str]) -> list[str]:
        """The remote checkpoints of this run that are no longer kept and are not in the stage, where it is pruned."""
        if not self._uploaded or not self._prunes:
            return []
        config, best = self._config, None
        whole = [Path(name) for name in list_remote_checkpoints(self.remote) if name not in doomed]
        if config.keep_best is not None:
            copies = Cache(config.cache_dir, config.cache_gb).fetch(
                self.remote, lambda file: file.endswith(f"/{METRICS}")
            )
            found = best_of([copies / path for path in whole], config.keep_best)
            best = None if found is None else Path(found.name)
        gone = superseded(
            whole, epochs=config.max_last_checkpoint_num, within=config.save_keep, every=config.keep_every, best=best
        )
        foreign = [path.name for path in gone if path.name not in self._uploaded and not (self.stage / path).exists()]
        run = self._run_of(whole[-1].name) if foreign else ""
        return [name for name in foreign if self._run_of(name) == run]

    def _run_of(self, name: str) -> str:
        about = json.loads(self.remote.read(f"{name}/{MANIFEST}"))["about"]
        return str(about.get("run", ""))

    def _upload_run_files(self) -> None:
        for name in _RUN_FILES:
            source, copy = self.stage / name, self.stage / _LINKS / name
            if source.is_file():
                shutil.copyfile(source, copy)  # lines may follow meanwhile
                self.remote.upload(copy, name)
        copy = self.stage / _LINKS / LOGS
        for source in sorted((self.stage / LOGS).rglob("*")):
            name, status = source.relative_to(self.stage).as_posix(), source.lstat()
            mark = (status.st_size, status.st_mtime_ns)
            if source.is_file() and not source.is_symlink() and self._logs.get(name) != mark:
                shutil.copyfile(source, copy)
                self.remote.upload(copy, name)
                self._logs[name] = mark

    def _fetch_run_files(self) -> None:
        """Copy the metrics of earlier runs to the stage, unless it holds a longer copy of the same."""
        self.stage.mkdir(parents=True, exist_ok=True)
        with self._fetching():
            listed = self.remote.files()
            for name in (*_RUN_FILES, *(name for name in listed if _is_log(name))):
                target = self.stage / name
                if name not in listed or (target.is_file() and target.stat().st_size >= listed[name].size):
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = partial_path(target)
                self.remote.fetch(name, partial, listed[name].size)
                partial.replace(target)

    @contextlib.contextmanager
    def _fetching(self) -> Iterator[None]:
        """Hold the lock of the stage's copies; other processes of the machine wait."""
        folder = self.stage / _FETCHING
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, CheckpointError):
            yield

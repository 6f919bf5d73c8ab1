"""Where a run starts: anew, from a checkpoint that is named, or by itself from the newest whole one in its folder."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from plsc.checkpoint import MANIFEST, Checkpoint, is_copy, list_checkpoints
from plsc.checkpoint.manifest import VERSION
from plsc.config import Config
from plsc.distributed.agreement import agree
from plsc.distributed.collectives import Collectives
from plsc.distributed.topology import Topology
from plsc.engine.about import About
from plsc.errors import CheckpointError, StorageError
from plsc.utils.files import sync_path
from plsc.utils.hints import setter
from plsc.utils.ranges import shard_range

log = logging.getLogger("plsc")

# What the system says of a file that is missing. Anything else says nothing about the checkpoint.
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


def open_start(config: Config, collectives: Collectives) -> Checkpoint | None:
    """The checkpoint that a run starts from; None for a new run. Every rank must call this.

    Without `auto_resume` it is that of `checkpoint_dir`. With it, the newest whole checkpoint in `model_save_dir`,
    where that holds any; damaged ones that are newer are renamed, so that the run can save under their names.

    Raises:
        CheckpointError: the checkpoint of `checkpoint_dir` cannot be opened; or all in `model_save_dir` are damaged.
        StorageError: the system cannot read a checkpoint, which may be sound.
    """
    if config.auto_resume:
        found = _newest_whole(Path(config.model_save_dir), collectives)
        if collectives.topology.is_main:
            _log_choice(config, found)
        if found is not None or _is_save_folder(config):
            return found
    return agree(lambda: _open_named(config), collectives, error=CheckpointError)


def is_named(config: Config, saved: Checkpoint) -> bool:
    """Whether `checkpoint_dir` names this very checkpoint, not the folder that holds it."""
    return bool(config.checkpoint_dir) and Path(config.checkpoint_dir).resolve() == saved.path.resolve()


def is_in_save_folder(config: Config, saved: Checkpoint) -> bool:
    """Whether a checkpoint lies in the folder that this run saves into: training goes on with the run that wrote it."""
    return saved.path.resolve().parent == Path(config.model_save_dir).resolve()


def _open_named(config: Config) -> Checkpoint | None:
    if not config.checkpoint_dir:
        return None
    try:
        return Checkpoint(config.checkpoint_dir)
    except CheckpointError as error:
        if not _is_save_folder(config) or list_checkpoints(config.checkpoint_dir):
            raise
        raise CheckpointError(
            f"{error}; to begin where there is no checkpoint, and go on where there is one: "
            f"{setter('auto_resume', True)}"
        ) from None


def _is_save_folder(config: Config) -> bool:
    """Whether `checkpoint_dir` is the folder that this run saves into."""
    return (
        bool(config.checkpoint_dir) and Path(config.checkpoint_dir).resolve() == Path(config.model_save_dir).resolve()
    )


def _newest_whole(root: Path, collectives: Collectives) -> Checkpoint | None:
    """The newest checkpoint of the newest run in `root` that every rank finds whole."""
    topology = collectives.topology
    listed = agree(lambda: _list(root) if topology.is_main else [], collectives, error=CheckpointError)
    run, damaged = None, list[tuple[str, CheckpointError]]()
    for name in collectives.gather_objects(listed)[0]:
        try:
            saved = agree(functools.partial(_open, root / name), collectives, error=StorageError)
            run = About.of(saved).run if run is None else run
            if About.of(saved).run != run:
                break
            agree(functools.partial(_verify, saved, topology), collectives, error=StorageError)
        except CheckpointError as error:
            damaged.append((name, error))
            continue
        set_aside = functools.partial(_set_aside, root, damaged if topology.is_main else [], saved)
        agree(set_aside, collectives, error=CheckpointError)
        return saved
    if damaged:
        reasons = "; ".join(f"{name}: {error}" for name, error in damaged)
        raise CheckpointError(
            f"{root}: no checkpoint of this run is whole, and nothing was changed: {reasons}. To begin anew, move the "
            f"folder away, or choose another one with {setter('model_save_dir')}"
        )
    return None


def _list(root: Path) -> list[str]:
    """The names of the checkpoints, the newest first."""
    found = list_checkpoints(root)
    if found and is_copy(found[-1]):
        log.warning(
            "%s: %s was saved under another name, and training does not go on from it; give it that name to do so",
            root,
            found[-1].name,
        )
        return []
    for path in found:
        version = _version_of(path)
        if version is not None and version > VERSION:
            raise CheckpointError(
                f"{path}: a newer version of PLSC wrote it (format version {version}, this one reads up to {VERSION}); "
                f"go on with that version"
            )
    return [path.name for path in reversed(found)]


def _version_of(path: Path) -> int | None:
    """The format version that a manifest states; None where it is damaged."""
    try:
        version = json.loads((path / MANIFEST).read_bytes())["version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return version if isinstance(version, int) else None


def _open(path: Path) -> Checkpoint:
    with _storage_apart(path):
        saved = Checkpoint(path)
        About.of(saved)
        return saved


@contextlib.contextmanager
def _storage_apart(path: Path) -> Iterator[None]:
    """Make it a `StorageError` where the system refuses to read: only what was read can be damaged.

    Raises:
        CheckpointError: one raised in the `with` block for another reason, unchanged.
        StorageError: the system refused to read.
    """
    try:
        yield
    except (CheckpointError, OSError, MemoryError) as error:
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, (OSError, MemoryError)):
            reason = reason.__cause__
        if reason is None or (isinstance(reason, OSError) and reason.errno in _MISSING):
            raise
        text = getattr(reason, "strerror", None) or type(reason).__name__
        raise StorageError(f"{path}: cannot be read: {text}. The checkpoint may be whole: check the disk") from error


def _verify(saved: Checkpoint, topology: Topology) -> None:
    """Read this rank's share of a checkpoint, which is compared with its digests while it is read."""
    with _storage_apart(saved.path):
        for name in saved.names():
            shape = saved.shape(name)
            own = shard_range(shape[0] if shape else 1, topology.world_size, shard=topology.rank)
            for _ in saved.blocks(name, own):
                pass


def _set_aside(root: Path, damaged: list[tuple[str, CheckpointError]], saved: Checkpoint) -> None:
    """Rename damaged checkpoints, so that the run can save under their names. Nothing is deleted."""
    for name, error in damaged:
        aside = root / f"{name}.damaged"
        number = 0
        while os.path.lexists(aside):
            number += 1
            aside = root / f"{name}.damaged.{number}"
        (root / name).rename(aside)
        log.warning(
            "%s is damaged: %s. Training goes on from %s; the damaged checkpoint stays as %s, and may be deleted",
            root / name,
            error,
            saved.path,
            aside,
        )
    if damaged:
        sync_path(root)


def _log_choice(config: Config, found: Checkpoint | None) -> None:
    if found is None:
        start = f"from {config.checkpoint_dir}" if config.checkpoint_dir and not _is_save_folder(config) else "anew"
        log.info("%s holds no checkpoint: training begins %s", config.model_save_dir, start)
    elif config.checkpoint_dir and not is_named(config, found) and not _is_save_folder(config):
        log.info(
            "%s is not loaded: training goes on from %s, the newest checkpoint in %s",
            config.checkpoint_dir,
            found.path,
            config.model_save_dir,
        )

"""The settings of a run with local paths in place of URLs: what they name is copied here, or written here first."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plsc.config import Config
from plsc.data.remote_data import fetch_data, fetch_set, fetch_sets
from plsc.engine.uploads import Uploader, fetch_checkpoint, find_checkpoint
from plsc.errors import CheckpointError, DataError
from plsc.pretrained.opening import WEIGHT_FILES
from plsc.remote.cache import Cache
from plsc.remote.folder import RemoteFolder
from plsc.remote.upload import upload_folder
from plsc.utils.atomic import lock_folder
from plsc.utils.hints import setter
from plsc.utils.locations import is_remote, split

log = logging.getLogger("plsc")

# The settings that a remote folder may stand in.
PLACES = ("dataset_dir", "val_targets", "val_dataset_dir", "checkpoint_dir", "pretrained", "model_save_dir")


def remote_settings(config: Config) -> dict[str, str]:
    """The settings that name remote folders."""
    values = {name: getattr(config, name) or "" for name in PLACES}
    return {name: value for name, value in values.items() if any(map(is_remote, value.split(",")))}


def places_of_training(config: Config) -> tuple[Config, Uploader | None]:
    """The settings of a training run with local paths, and what uploads its checkpoints.

    Data and checkpoint are copied to the cache, the checkpoint to the stage where it lies in the remote
    `model_save_dir`: the run goes on there. Every rank may call this; one of a machine copies, the others wait.

    Raises:
        DataError, CheckpointError: something does not exist.
        StorageError: a remote folder cannot be read, or does not fit into the cache.
    """
    remote, uploads, local = remote_settings(config), None, {}
    if "model_save_dir" in remote:
        url = remote["model_save_dir"]
        stage = Path(config.stage_dir) if config.stage_dir else _stage_in_cache(config, url)
        uploads = Uploader(url, stage, config=config, is_temporary=not config.stage_dir)
        local["model_save_dir"] = str(stage)
        if config.auto_resume:
            uploads.open_newest()
    if "checkpoint_dir" in remote:
        local["checkpoint_dir"] = str(_checkpoint_to_resume(remote["checkpoint_dir"], config, uploads))
    if "pretrained" in remote:
        local["pretrained"] = str(_place_of_weights(remote["pretrained"], cache_of(config)))
    local.update(_places_of_data(config, remote, data=config.train_dataset is None and config.train_reader is None))
    return config.model_copy(update=local), uploads


def places_of_use(config: Config, *, sets: bool = False) -> Config:
    """The settings of a verification, a prediction or an export with local paths.

    The checkpoint is copied to the cache: that of `checkpoint_dir`, else the newest of `model_save_dir`. Training data
    is not copied.

    Args:
        config: the settings.
        sets: copy the verification sets and the validation data, which may be a part of the training data.

    Raises:
        DataError, CheckpointError: something does not exist.
        StorageError: a remote folder cannot be read, or does not fit into the cache.
    """
    remote, local = remote_settings(config), {}
    url = config.checkpoint_dir or config.model_save_dir
    if is_remote(url):
        local["checkpoint_dir"] = str(fetch_checkpoint(url, cache_of(config)))
    if sets:
        local.update(_places_of_data(config, remote, data=config.val_split > 0 and config.train_dataset is None))
    return config.model_copy(update=local)


def place_of_training_data(config: Config) -> Config:
    """The settings with a local path to the training data, which is copied to the cache; nothing else is copied.

    Raises:
        DataError: it does not exist.
        StorageError: a remote folder cannot be read, or does not fit into the cache.
    """
    if config.train_dataset is not None or not is_remote(config.dataset_dir):
        return config
    return config.model_copy(update={"dataset_dir": str(fetch_data(config.dataset_dir, cache_of(config)))})


def export_place(url: str, config: Config, *, manifest: str, write: Callable[[Path], Any]) -> None:
    """Let `write` write a local folder, and upload it to a remote one, the manifest last.

    An earlier export there is copied here first, so that `write` treats it as it would a local one.

    Args:
        url: the remote folder.
        config: names the cache.
        manifest: the file that makes the folder count.
        write: called with the local folder.

    Raises:
        StorageError: the remote folder cannot be read or written.
    """
    remote = RemoteFolder(url)
    remote.check_writable()
    place = _stage_in_cache(config, url)
    (place / "lock").mkdir(parents=True, exist_ok=True)
    # `write` may lock the folder that holds the one it writes.
    with lock_folder(place / "lock", DataError):
        folder = place / "export"
        shutil.rmtree(folder, ignore_errors=True)
        for name, file in remote.files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            remote.fetch(name, folder / name, file.size)
        write(folder)
        upload_folder(folder, remote, last=manifest)
        shutil.rmtree(folder)


def cache_of(config: Config) -> Cache:
    """The cache that the settings describe."""
    return Cache(config.cache_dir, config.cache_gb)


def _stage_in_cache(config: Config, url: str) -> Path:
    """A local folder of its own for what is written before it is uploaded to `url`."""
    return cache_of(config).folder / "staging" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]


def _checkpoint_to_resume(url: str, config: Config, uploads: Uploader | None) -> Path:
    if uploads is None:
        return fetch_checkpoint(url, cache_of(config))
    own = uploads.remote.url.rstrip("/")
    if url.rstrip("/") == own and (uploads.open_newest() is not None or config.auto_resume):
        return uploads.stage
    folder, name = find_checkpoint(url)
    return uploads.fetch(name) if folder.url.rstrip("/") == own else fetch_checkpoint(url, cache_of(config))


def _place_of_weights(url: str, cache: Cache) -> Path:
    """A copy of a remote file of weights, or of a remote checkpoint."""
    parent, name = split(url)
    if not name.endswith(WEIGHT_FILES):
        return fetch_checkpoint(url, cache)
    folder = RemoteFolder(parent)
    if name not in folder.files():
        raise CheckpointError(f"{url} does not exist; {setter('pretrained')} names a file of weights or a checkpoint")
    return cache.fetch(folder, lambda found: found == name) / name


def _places_of_data(config: Config, remote: dict[str, str], *, data: bool) -> dict[str, str]:
    cache, local = cache_of(config), {}
    names = config.val_names if config.with_test or not data else ()
    if "val_dataset_dir" in remote and (config.with_test or not data):
        local["val_dataset_dir"] = str(fetch_data(remote["val_dataset_dir"], cache))
    if "dataset_dir" in remote:
        url = remote["dataset_dir"]
        here = [name for name in names if not is_remote(name)]
        local["dataset_dir"] = str(fetch_data(url, cache, sets=here) if data else fetch_sets(url, cache, sets=here))
    if "val_targets" in remote and names:
        paths = [str(fetch_set(name, cache)) if is_remote(name) else name for name in names]
        local["val_targets"] = ",".join(paths)
    return local

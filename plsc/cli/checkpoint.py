"""`plsc checkpoint`: import, list, inspect, verify, re-shard, merge, average, edit and prune checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from plsc.cli.command import Command
from plsc.cli.settings import SettingsCommand, make_entry, with_settings
from plsc.config import Config
from plsc.errors import CheckpointError, ConfigError
from plsc.utils.json_text import to_json
from plsc.utils.lazy import require_paddle
from plsc.utils.locations import is_remote, keep_credentials
from plsc.utils.logging import show_log
from plsc.utils.plural import counted

app = typer.Typer(
    no_args_is_help=True, help="Import, list, inspect, verify, re-shard, merge, average, edit and prune checkpoints."
)


class CheckpointCommand(Command):
    """A command on local checkpoints. It imports Paddle."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            ConfigError: a folder is a URL.
            MissingDependencyError: Paddle is not installed.
        """
        require_paddle()
        for given in ctx.params.values():
            for path in given if isinstance(given, list) else [given]:
                if isinstance(path, Path) and is_remote(url := keep_credentials(str(path))):
                    raise ConfigError(f"{url}: plsc checkpoint takes local folders; copy the checkpoints to one first")
        return super().invoke(ctx)


Root = Annotated[Path, typer.Argument(help="Folder of checkpoints.")]
# Settings that `inspect` shows also where they are the default.
_OF_THE_PROBLEM = ("num_classes", "emb_dim", "image_shape", "model_name", "loss_type")

Source = Annotated[Path, typer.Argument(help="Checkpoint, or folder of checkpoints, of which the newest is taken.")]
Target = Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback()
def _show_log() -> None:
    show_log(is_main=True)


@app.command("list", cls=CheckpointCommand)
def list_(root: Root = Path("output"), *, as_json: Json = False) -> None:
    """Show the checkpoints of a folder, the oldest first. A damaged manifest is named; tensors are not read."""
    from plsc.checkpoint import list_checkpoints

    _check_root(root)
    found = [_row(path) for path in list_checkpoints(root)]
    if as_json:
        print(to_json(found, indent=1))
        return
    for row in found:
        if "error" in row:
            print(f"{row['path']}: {row['error']}")
        else:
            digests = "" if row["has_digests"] else ", no digests"
            print(f"{row['path']}: {_progress(**row)}{digests}")
    if not found:
        print(f"{root}: holds no checkpoint")


@app.command(cls=CheckpointCommand)
def inspect(source: Source, *, as_json: Json = False) -> None:
    """Show the results of a checkpoint's verification, what it says of its run, and its tensors. No tensor is read.

    Settings that have their default are left out; --json has all.
    """
    from plsc.checkpoint.tools import summarize
    from plsc.engine.about import read_metrics, saved_settings

    found = summarize(source)
    metrics = read_metrics(Path(found.path))
    if as_json:
        print(to_json({**dataclasses.asdict(found), "metrics": metrics}, indent=1))
        return
    print(f"{found.path}: {_progress(**vars(found))}")
    if metrics is not None:
        print(f"  metrics.json: {to_json(metrics)}")
    for key, value in found.about.items():
        if key == "settings":
            key, value = "settings but for defaults", _telling(value, saved_settings(Config()))
        print(f"  {key}: {to_json(value, ensure_ascii=False)}")
    for tensor in found.tensors:
        parts = f", {tensor.parts} parts" if tensor.parts != 1 else ""
        print(f"  {tensor.name}: {tensor.shape} of {tensor.dtype}{parts}")


def _telling(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Those of the problem, and those that are not the default."""
    return {
        name: value
        for name, value in settings.items()
        if name in _OF_THE_PROBLEM or name not in defaults or value != defaults[name]
    }


@app.command(cls=CheckpointCommand)
def verify(
    source: Annotated[Path, typer.Argument(help="Checkpoint, or folder of checkpoints, of which all are read.")],
    *,
    as_json: Json = False,
) -> None:
    """Read a checkpoint whole and compare it with its digests. Exits with 1 if anything is damaged."""
    from plsc.checkpoint.tools import find_damage

    conditions = find_damage(source)
    if as_json:
        told = {path: {"sound": not found.damages, **vars(found)} for path, found in conditions.items()}
        print(to_json(told, indent=1))
    else:
        for path, found in conditions.items():
            whole = "sound" if found.has_digests else "has no digests, and all of its files are of the right size"
            print("\n".join(found.damages or [f"{path}: {whole}"]))
    if any(found.damages for found in conditions.values()):
        raise typer.Exit(1)


@app.command(cls=CheckpointCommand)
def reshard(
    source: Source,
    target: Target,
    *,
    ranks: Annotated[int, typer.Option(min=1, help="Number of ranks that the class centers are divided among.")],
    as_json: Json = False,
) -> None:
    """Write a checkpoint as another number of ranks would have written it.

    Training does not need this: any number of ranks resumes from any checkpoint. It saves ranks that read over a slow
    network from reading rows that are not theirs.
    """
    from plsc.checkpoint.tools import reshard

    _print_written(reshard(source, target, ranks=ranks), as_json)


@app.command(cls=CheckpointCommand)
def merge(source: Source, target: Target, *, as_json: Json = False) -> None:
    """Write a checkpoint with every tensor whole in one file, under its own name, for other readers of safetensors.

    It stays a checkpoint: training resumes from it, test and export take it.
    """
    from plsc.checkpoint.tools import reshard

    _print_written(reshard(source, target, ranks=1), as_json)


@app.command("import", cls=CheckpointCommand)
def import_(
    source: Annotated[
        Path, typer.Argument(help="Folder with the files of all ranks of a training, or a file of a network.")
    ],
    target: Target,
    *,
    model_name: Annotated[str, typer.Option(help="Backbone: the one here that the files are of.")],
    image_shape: Annotated[str, typer.Option(help="Shape of its images.")] = "3,112,112",
    loss_type: Annotated[str, typer.Option(help="Loss that training goes on with.")] = "dist_arcface",
    ranks: Annotated[int, typer.Option(min=1, help="Number of ranks that the class centers are divided among.")] = 1,
    backbone: Annotated[
        Path | None, typer.Option(help="File of the network, where it is not among those of the source.")
    ] = None,
    pixel_mean: Annotated[
        str | None, typer.Option(help="Mean of pixels of 0 to 255 in its training. Default: 127.5.")
    ] = None,
    pixel_std: Annotated[
        str | None, typer.Option(help="Standard deviation of these pixels. Default: 127.5, for PLSC 0.x 128.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse a network whose tensors do not all fit. By default a table lists them."),
    ] = False,
    bgr: Annotated[bool, typer.Option("--bgr", help="The network takes pixels blue first, as AdaFace's.")] = False,
    as_json: Json = False,
) -> None:
    """Make a checkpoint of what another library's training has saved: its network, class centers and momentum.

    Of arcface_torch the folder with checkpoint_gpu_0.pt and so on, or with rank_0_softmax_weight.pt; of PLSC 2.x
    latest.pdparams; of PLSC 0.x the folder of an epoch; or any file that --pretrained takes. See docs/pretrained.md.
    """
    from plsc.engine.importing import import_checkpoint

    written = import_checkpoint(
        source,
        target,
        model_name=model_name,
        image_shape=image_shape,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        loss_type=loss_type,
        ranks=ranks,
        backbone=backbone,
        strict=strict,
        bgr=bgr,
    )
    _print_written(written, as_json)


@app.command(cls=CheckpointCommand)
def average(
    sources: Annotated[list[Path], typer.Argument(help="Checkpoints of one run, two or more.")],
    *,
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist yet.")],
    as_json: Json = False,
) -> None:
    """Write the mean of the weights of several checkpoints, running statistics included, for test and export."""
    from plsc.checkpoint.tools import average

    show_log(is_main=True)
    _print_written(average(sources, to), as_json)


@app.command(cls=CheckpointCommand)
def classes(
    source: Source,
    *,
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist yet.")],
    drop: Annotated[Path | None, typer.Option(help="File of the classes to leave out, a name a line.")] = None,
    merge: Annotated[
        Path | None,
        typer.Option(
            help="File of the classes to merge: a line names the class that stays, then those merged into it."
        ),
    ] = None,
    rename: Annotated[
        Path | None, typer.Option(help="File of the classes to rename: a line is the present name and the new one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint without some classes, with classes merged or renamed, as for cleaned identities.

    Names on a line are divided by tabs, or by commas. Where the checkpoint has no names of classes, they are numbers.
    """
    from plsc.engine.class_edit import edit_classes, read_class_lists, read_new_names

    if drop is None and merge is None and rename is None:
        raise ConfigError("nothing is to be done; expected --drop, --merge or --rename")
    found = edit_classes(
        source,
        to,
        drop=[] if drop is None else [name for (name,) in read_class_lists(drop, columns=1)],
        merge=[] if merge is None else read_class_lists(merge, columns=None),
        rename={} if rename is None else read_new_names(rename),
    )
    if as_json:
        print(to_json(vars(found), indent=1))
        return
    print(
        f"wrote {found.path}: {counted(found.after, 'class')} of {found.before}; {found.dropped} dropped, "
        f"{found.merged} merged into others, {found.renamed} renamed"
    )


class SubcentersCommand(SettingsCommand, CheckpointCommand):
    """A command on a local checkpoint with the flags of settings."""


@app.command(cls=SubcentersCommand)
@with_settings(Config, without=("checkpoint_dir", "model_save_dir", "subcenters"))
def subcenters(
    settings: dict[str, Any],
    source: Source,
    to: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist yet.")],
    data: Annotated[
        str | None,
        typer.Option(help="The training data, as --dataset-dir. Default: where the checkpoint's training had it."),
    ] = None,
    angle: Annotated[
        float, typer.Option(help="Degrees: images farther than that from the dominant center of their class count.")
    ] = 75.0,
    csv: Annotated[
        Path | None, typer.Option(help="File to write: a row for each image above --angle. It must not exist yet.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make of a checkpoint with several centers per class one with the dominant center of each, and list odd images.

    The dominant center is the one that most training images of the class are nearest to. Settings of the network and
    the data come from the checkpoint unless they are given. Settings of the training have no effect.
    """
    if data is not None and "dataset_dir" in settings:
        raise ConfigError("--data and --dataset-dir (or dataset_dir in the file) name the same; expected one of them")
    if data is not None:
        settings["dataset_dir"] = data
    found = make_entry({**settings, "checkpoint_dir": str(source)}).drop_subcenters(to, angle=angle, csv=csv)
    if as_json:
        print(to_json(vars(found), indent=1))
        return
    listed = "" if found.csv is None else f"  listed in {found.csv}"
    rest = f"  {found.without_images} without an image: sub-center 0" if found.without_images else ""
    skipped = f"  {found.skipped} more cannot be read" if found.skipped else ""
    print(f"wrote {found.path}")
    for name, count, what in (
        ("classes", found.classes, rest),
        ("images", found.images, skipped),
        (f"images above {found.angle:g} degrees", found.above, listed),
        ("sub-centers dropped", found.dropped, ""),
    ):
        print(f"{name:28} {count:>12,}{what}")


@app.command(cls=CheckpointCommand)
def prune(
    root: Root,
    *,
    keep: Annotated[int, typer.Option(min=1, help="Number of newest checkpoints that stay.")],
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete. Without it, the command only says what it would do.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted, as without --yes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete all but the newest checkpoints of a folder; nothing without --yes, nor if the newest is damaged."""
    from plsc.checkpoint import Checkpoint, delete_checkpoint, list_checkpoints

    if yes and dry_run:
        raise ConfigError("--yes deletes and --dry-run does not; expected one of them")
    _check_root(root)
    checkpoints = list_checkpoints(root)
    doomed = checkpoints[:-keep]
    if yes and doomed:
        try:
            Checkpoint(checkpoints[-1]).verify()
        except CheckpointError as error:
            raise CheckpointError(f"{error}; nothing was deleted") from None
        for path in doomed:
            try:
                delete_checkpoint(path)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be deleted: {error}") from None
    if as_json:
        kept = [str(path) for path in checkpoints if path not in doomed]
        print(to_json({"deleted" if yes else "would_delete": [str(path) for path in doomed], "kept": kept}, indent=1))
        return
    for path in doomed:
        print(f"{path}: {'deleted' if yes else 'would be deleted'}")
    if not doomed:
        print(f"{root}: holds {counted(len(checkpoints), 'checkpoint')}, nothing to delete")
    elif not yes:
        print("nothing was deleted: add --yes to delete")


def _check_root(root: Path) -> None:
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder; expected one that holds checkpoints (output)")


def _row(path: Path) -> dict[str, Any]:
    from plsc.checkpoint.tools import summarize

    try:
        found = summarize(path)
    except CheckpointError as error:
        return {"path": str(path), "error": str(error)}
    return {key: getattr(found, key) for key in ("path", "epoch", "step", "bytes", "ranks", "has_digests")}


def _progress(*, epoch: int | None, step: int | None, bytes: int, ranks: int, **_: Any) -> str:
    done = f"{counted(epoch, 'epoch')} done" if epoch is not None else "no epoch known"
    return f"{done}, step {step}, {_size(bytes)}, {counted(ranks, 'rank')}"


def _print_written(folder: Path, as_json: bool) -> None:
    from plsc.checkpoint.tools import summarize

    found = summarize(folder)
    if as_json:
        print(to_json({"path": found.path, "bytes": found.bytes, "ranks": found.ranks}, indent=1))
    else:
        print(f"wrote {found.path}: {_size(found.bytes)}, {counted(found.ranks, 'rank')}")


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"

"""Classes that mean others than in the checkpoint: found, stopped at, moved to their names, added or begun anew."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plsc.checkpoint import Checkpoint, Part
from plsc.config import Config
from plsc.data.class_identity import ClassIdentity, find_change, rows_by_name, sample_places
from plsc.data.records import Records
from plsc.data.sources.string_table import StringTable
from plsc.engine.about import About, AboutClasses
from plsc.errors import CheckpointError
from plsc.utils.hints import setter
from plsc.utils.plural import counted

log = logging.getLogger("plsc")

_CLASSES = "classes."  # begins the names of the tensors of the classes' identity
_NAMED = 3  # names of classes that a line of the log shows


@dataclass(frozen=True)
class ClassMove:
    """Which class of a checkpoint each class of this run was.

    Attributes:
        rows: [C], its number in the checkpoint, -1 for a new class.
        num_before: number of classes in the checkpoint.
        names: of the classes of this run, as far as they have names.
        names_before: of the classes of the checkpoint, as far as they have names.
    """

    rows: NDArray[np.int64]
    num_before: int
    names: list[str]
    names_before: list[str]

    @property
    def new(self) -> NDArray[np.int64]:
        """The classes that the checkpoint does not have, ascending."""
        return np.flatnonzero(self.rows < 0)

    @property
    def gone(self) -> NDArray[np.int64]:
        """The classes of the checkpoint that this run does not have, ascending."""
        return np.setdiff1d(np.arange(self.num_before, dtype=np.int64), self.rows)

    @property
    def num_kept(self) -> int:
        """How many classes have a row in the checkpoint."""
        return int((self.rows >= 0).sum())

    @property
    def changes_classes(self) -> bool:
        """Whether classes are new or gone, in contrast to a new order."""
        return bool(self.new.size or self.gone.size)

    def table(self, begin: str) -> list[str]:
        """Lines that say what becomes of the classes.

        Args:
            begin: where the centers of new classes begin, in words.
        """
        kept = np.flatnonzero(self.rows >= 0)
        moved = int((self.rows[kept] != kept).sum())
        rows = [
            ("kept", len(kept), f"{moved} under another number; all with center and optimizer state", kept, self.names),
            ("new", len(self.new), begin, self.new, self.names),
            ("gone", len(self.gone), "left out", self.gone, self.names_before),
        ]
        return [
            f"{name:5} {count:>9,}  {what if count else ''}{_examples(classes, names)}".rstrip()
            for name, count, what, classes, names in rows
        ]


def _examples(classes: NDArray[np.int64], names: list[str]) -> str:
    shown = [repr(names[number]) for number in classes[:_NAMED] if number < len(names)]
    more = ", ..." if len(classes) > _NAMED else ""
    return f" ({', '.join(shown)}{more})" if shown else ""


def rows_of_classes(classes: NDArray[np.int64], *, per_class: int = 1) -> NDArray[np.int64]:
    """The rows of classes in a tensor that has some rows in succession for each: [n * per_class], -1 for class -1."""
    rows = classes[:, None] * per_class + np.arange(per_class, dtype=np.int64)
    rows[classes < 0] = -1
    return rows.reshape(-1)


def class_parts(identity: ClassIdentity | None) -> list[Part]:
    """The identity of the classes, for rank 0 to write."""
    return [] if identity is None else [Part(f"{_CLASSES}{name}", array) for name, array in identity.arrays().items()]


def about_classes(identity: ClassIdentity | None) -> dict[str, object] | None:
    """What a checkpoint's manifest says of the classes, in addition to the tensors of `class_parts`."""
    if identity is None:
        return None
    return {"by": identity.by, "images": identity.num_images, "digest": identity.digest}


def match_classes(
    saved: Checkpoint,
    identity: ClassIdentity | None,
    *,
    records: Records | None,
    folder: str,
    config: Config,
    action: str | None = None,
) -> ClassMove | None:
    """Compare the classes of a checkpoint with those of this run's data.

    Args:
        saved: the checkpoint.
        identity: of the classes of `records`; None where it is not known.
        records: the training data; None where it is no source of records.
        folder: of the data.
        config: the settings.
        action: what happens where numbers mean other classes, in place of `config.class_change`.

    Returns:
        What becomes of the classes; None where classes keep their numbers.

    Raises:
        CheckpointError: numbers mean other classes, and `class_change` is 'stop', or cannot be followed: 'by_name'
            without names, 'grow' where an old class is another or gone.
    """
    action, about, change = action or config.class_change, About.of(saved), None
    before = None if about.classes is None else read_classes(saved, about.classes)
    trained = about.settings.num_classes
    if action == "new_head":
        rows = np.full([config.num_classes], -1, np.int64)
        return ClassMove(rows, trained, _names(identity), _names(before))
    if before is None or identity is None or records is None:
        if action == "by_name":
            raise CheckpointError(_explain_no_names(saved, "not both have names"))
        if before is not None or identity is not None:
            log.info("%s: whether the classes have kept their numbers cannot be told", saved.path)
    elif action != "by_number":
        if action == "by_name":
            if not isinstance(named := rows_by_name(before, identity), str):
                return _move_by_name(saved, before, identity, named=named, config=config)
            if before.digest != identity.digest:
                raise CheckpointError(_explain_no_names(saved, named))
        change = find_change(before, identity, records=records, folder=folder)
    if change is not None:
        named = rows_by_name(before, identity) if before is not None and identity is not None else ""
        names = _names(before), _names(identity)
        raise CheckpointError(_explain_change(saved, change, named, action=action, names=names))
    if action == "grow":
        return _grow(saved, before, identity, config=config, trained=trained)
    _check_number(saved, records, config)
    return None


def _move_by_name(
    saved: Checkpoint, before: ClassIdentity, identity: ClassIdentity, *, named: NDArray[np.int64], config: Config
) -> ClassMove | None:
    trained = About.of(saved).settings.num_classes
    rows = np.arange(max(config.num_classes, len(named)), dtype=np.int64)
    rows[: len(named)] = named
    # Classes beyond the names are there without an image; they are those of before where these had no name either.
    beyond = rows[len(named) :]
    beyond[(beyond < len(before.table)) | (beyond >= trained)] = -1
    if np.array_equal(rows, np.arange(trained)):
        return None
    if not (rows >= 0).any():
        raise CheckpointError(
            f"{saved.path}: no class of it has the name of one in the training data, as {_names(before)[0]!r} there "
            f"and {_names(identity)[0]!r} here; to keep the network and begin all centers anew: "
            f"{setter('class_change', 'new_head')}"
        )
    return ClassMove(rows, trained, _names(identity), _names(before))


def names_in(saved: Checkpoint) -> StringTable | None:
    """The names of the classes of a checkpoint; None where they had none.

    Raises:
        CheckpointError: the names are damaged.
    """
    about = About.of(saved).classes
    return names_of(None if about is None or about.by != "name" else read_classes(saved, about))


def names_of(identity: ClassIdentity | None) -> StringTable | None:
    """The names of the classes of an identity; None where they have none."""
    return identity.table if identity is not None and identity.by == "name" else None


def _grow(
    saved: Checkpoint, before: ClassIdentity | None, identity: ClassIdentity | None, *, config: Config, trained: int
) -> ClassMove | None:
    """Those of before keep their numbers, which was checked as far as it can be."""
    found, named = config.num_classes, len(_names(identity))
    if found < trained or (named and named < len(_names(before))):
        what = f"{named} names" if found >= trained else counted(found, "class")
        raise CheckpointError(
            f"{saved.path}: it has {counted(trained, 'class')}, this run has {what}, and "
            f"{setter('class_change', 'grow')} only adds classes; where they have names, "
            f"{setter('class_change', 'by_name')} leaves out those that are gone"
        )
    if found == trained:
        return None
    rows = np.full([found], -1, np.int64)
    rows[:trained] = np.arange(trained)
    return ClassMove(rows, trained, _names(identity), _names(before))


def _names(identity: ClassIdentity | None) -> list[str]:
    return list(identity.table) if identity is not None and identity.by == "name" else []


def _explain_names(move: ClassMove) -> str:
    """'. Of the names, 1 is gone, as 'a', and 2 are new, as 'd'', or '' where all are the same."""
    parts = [
        f"{counted(len(numbers), 'class')} {what} ({_first(numbers, names)})"
        for what, numbers, names in (("gone", move.gone, move.names_before), ("new", move.new, move.names))
        if len(numbers)
    ]
    return f". By their names there are {' and '.join(parts)}" if parts else ""


def _first(numbers: NDArray[np.int64], names: list[str]) -> str:
    return f"the first {names[numbers[0]]!r}" if numbers[0] < len(names) else f"the first number {numbers[0]}"


def _explain_change(
    saved: Checkpoint, change: str, named: NDArray[np.int64] | str, *, action: str, names: tuple[list[str], list[str]]
) -> str:
    advice = ["Resume on the earlier data", f"train a new run without {setter('checkpoint_dir')}"]
    if isinstance(named, str):
        change = f"{change}. They cannot be matched by name: {named}"
    else:
        advice.append(f"{setter('class_change', 'by_name')} to move each center to its class")
        change += _explain_names(ClassMove(named, len(names[0]), names[1], names[0]))
    kept = "class numbers mean other classes than when it was written"
    if action == "grow":
        kept = f"{setter('class_change', 'grow')} keeps its numbers, but {kept}"
    return (
        f"{saved.path}: {kept}, and class centers would belong to "
        f"other classes: {change}. {'; or '.join(advice)}; or, where the numbers are right, "
        f"{setter('class_change', 'by_number')}"
    )


def _explain_no_names(saved: Checkpoint, why: str) -> str:
    return (
        f"{saved.path}: its classes and those of the training data cannot be matched by name: {why}. Class folders, "
        f"tables with names and a file classes.txt give names; or, to keep the numbers: "
        f"{setter('class_change', 'by_number')}; to keep them and add classes behind: "
        f"{setter('class_change', 'grow')}; to keep the network alone: {setter('class_change', 'new_head')}"
    )


def _check_number(saved: Checkpoint, records: Records | None, config: Config) -> None:
    trained = About.of(saved).settings.num_classes
    found = config.num_classes if records is None or records.num_classes is None else records.num_classes
    if found > trained:
        raise CheckpointError(
            f"{saved.path}: it has {counted(trained, 'class')}, the training data has {found}: resume on data of its "
            f"classes; {setter('class_change', 'grow')} to add classes behind them; "
            f"{setter('class_change', 'by_name')} to follow their names; or train a new run without "
            f"{setter('checkpoint_dir')}"
        )


def read_classes(saved: Checkpoint, about: AboutClasses) -> ClassIdentity:
    """The identity of the classes of a checkpoint.

    Raises:
        CheckpointError: its tensors are missing or damaged.
    """
    arrays = {name[len(_CLASSES) :]: saved.read(name) for name in saved.names(_CLASSES)}
    try:
        identity = ClassIdentity.from_arrays(about.by, about.images, arrays=arrays)
    except KeyError as error:
        raise CheckpointError(
            f"{saved.path}: holds no tensor '{_CLASSES}{error.args[0]}'; use another checkpoint"
        ) from None
    expected = len(sample_places(about.images)) if about.by == "label" else 0
    if identity.digest != about.digest or len(identity.labels) != expected:
        raise CheckpointError(f"{saved.path}: the tensors of the classes' identity are damaged; use another checkpoint")
    return identity

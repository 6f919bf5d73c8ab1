"""The checkpoints of a run: when one is saved, how it is written while training goes on, and which are kept.

A save goes through these phases, and ranks enter each together:

    begin      rank 0 makes the partial folder; each rank copies what it saves (the only wait of training)
    writing    a thread on each rank writes the rank's files, and reads them back
    naming     a thread on rank 0 gives the folder its name, and deletes the oldest checkpoints

Ranks learn that a phase is over from numbers that travel with the verdict on each step (`Notices`), so that no rank
waits for another one's disk. Where memory does not allow the copy, or a tensor may not be copied (`Part.may_copy`),
training waits while the threads read the tensors themselves, block by block. `Snapshot` decides it, once for all ranks.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from plsc.checkpoint import NotFiniteError, Part, abandon, begin, complete, is_written, remove_leftovers, write_parts
from plsc.config import Config
from plsc.distributed import watch
from plsc.distributed.agreement import agree, explain, on_all_ranks
from plsc.distributed.collectives import Collectives
from plsc.engine.observers import Step
from plsc.engine.retention import prune
from plsc.engine.run_lock import RunLock
from plsc.engine.snapshot import Layout, Snapshot, layouts
from plsc.engine.uploads import Uploader
from plsc.errors import CheckpointError, NotSavedError
from plsc.utils.files import size_text
from plsc.utils.hints import setter

log = logging.getLogger("plsc")

# Seconds from a save that failed to the next try.
_RETRY_SECONDS = 60.0
# Seconds between the tries at the end of a run: half an hour in all.
LAST_PAUSES = (5, 15, 40, 60, 120, 180, 300, 300, 300, 480)
# The same once a signal has asked to stop: what sent it kills after a while.
STOP_PAUSES = (2, 5)
# Seconds after which a rank that waits says so.
_ROUND_SECONDS = 1.0
# Seconds that rank 0 waits for other ranks' files where an error has ended the run.
_RESCUE_SECONDS = 20.0


class Notices(NamedTuple):
    """What a rank tells the others with each step; they get the sum over ranks.

    Attributes:
        stop: a signal asked this rank to stop.
        save: on rank 0, the time of the next save has come.
        ready: this rank has ended its work on the present phase of the save.
        failed: that work failed.
    """

    stop: float = 0.0
    save: float = 0.0
    ready: float = 0.0
    failed: float = 0.0


@dataclass
class _Save:
    """A save under way, as one rank sees it."""

    step: Step
    folder: Path
    about: dict[str, Any]
    prunes: bool
    is_naming: bool = False
    thread: threading.Thread | None = None
    failure: Exception | None = None

    def run(self, work: Callable[[], object]) -> None:
        """Do the work of a phase in a thread."""

        def attempt() -> None:
            try:
                work()
            except Exception as error:  # whatever it is, the other ranks must learn of it
                self.failure = error

        self.thread = threading.Thread(target=attempt, name="plsc save", daemon=True)
        self.thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether this rank's work on the present phase is over."""
        return self.thread is None or not self.thread.is_alive()


@dataclass
class Saver:
    """Saves the checkpoints of a run. Every rank makes one, and calls the same methods at the same steps.

    Args:
        config: `model_save_dir`, and the settings of when to save and what to keep.
        collectives: over all ranks.
        uploads: copies checkpoints to a remote folder; None where `model_save_dir` is a local one.
        lock: of `model_save_dir`, which may be removed or replaced while the run goes on.

    Attributes:
        saved_step: the last step that is in a checkpoint, or in one under way; None where there is none.
        failure: why the last save failed; '' where it did not.
        newest: the last checkpoint that got its name; None where none did.
    """

    config: Config
    collectives: Collectives
    uploads: Uploader | None = None
    lock: RunLock | None = None
    saved_step: int | None = None
    failure: str = ""
    newest: Path | None = None
    _save: _Save | None = None
    _completed: list[tuple[Step, Path]] = field(default_factory=list)
    _snapshot: Snapshot = field(init=False)
    _is_owed: bool = False
    _phase_since: int = -1  # steps done when the present phase was entered
    _next_time: float = field(init=False)

    def __post_init__(self) -> None:
        self._next_time = time.monotonic() + self._seconds
        self._snapshot = Snapshot(self.config, self.collectives)

    def check_space(self, parts: Iterable[Part]) -> None:
        """Find out before the first step whether the disk has room for a checkpoint.

        Raises:
            CheckpointError: it has not; the same on every rank.
        """
        size = self._global_size(layouts(parts))
        root = Path(self.config.model_save_dir)
        agree(lambda: _check_space(root, size), self.collectives, error=CheckpointError)

    # When

    def notices(self) -> Notices:
        """What this rank tells the others with a step."""
        save = self._save
        is_time = save is None and self.collectives.topology.is_main and time.monotonic() >= self._next_time
        return Notices(
            save=float(is_time),
            ready=float(save is not None and save.is_ready),
            failed=float(save is not None and save.is_ready and save.failure is not None),
        )

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint within the epoch is to be saved after a step; none while another one is under way."""
        return self._is_owed and self._save is None and step != self.saved_step

    @property
    def waits(self) -> bool:
        """Whether training has waited for the last save to be written; the same on all ranks."""
        return not self._snapshot.is_used

    @property
    def _seconds(self) -> float:
        return float("inf") if self.config.save_minutes is None else 60 * self.config.save_minutes

    # One save

    def start(
        self, step: Step, name: str, *, parts: Callable[[], Iterable[Part]], about: dict[str, Any], prunes: bool
    ) -> None:
        """Begin to save the checkpoint `name`. An earlier one is awaited first.

        Args:
            step: the last step in it.
            name: '7' after epoch 7, '7.120' after step 120 of epoch 7.
            parts: makes what this rank holds.
            about: what the manifest says of the run.
            prunes: whether checkpoints that are no longer kept are deleted.

        Raises:
            CheckpointError: the parts cannot be made, or hold numbers that are not finite.
        """
        self.finish()
        self._phase_since = step.number
        save = _Save(step, Path(self.config.model_save_dir) / name, about, prunes)
        prefix = f"the checkpoint {save.folder} was not written: "
        held = agree(lambda: list(parts()), self.collectives, error=CheckpointError, prefix=prefix)
        self.saved_step, self._is_owed, self._next_time = step.number, False, time.monotonic() + self._seconds
        size = self._global_size(layouts(held))
        try:
            agree(lambda: self._begin(save.folder, size), self.collectives, error=CheckpointError)
        except CheckpointError as error:
            self._note_failure(save, str(error))
            return
        self._save = save
        copies, rank = self._snapshot.copy(held), self.collectives.topology.rank
        save.run(lambda: write_parts(save.folder, held if copies is None else copies, rank=rank))
        if copies is None:
            self.finish()

    def prepare(self, parts: Callable[[], Iterable[Part]]) -> None:
        """Take memory for copies, at the first call. Call it after a step, which has taken what memory it takes.

        Args:
            parts: makes what this rank holds.

        Raises:
            CheckpointError: the parts cannot be made.
        """
        if not self._snapshot.is_prepared:
            prefix = "no checkpoint can be written: "
            held = agree(lambda: list(parts()), self.collectives, error=CheckpointError, prefix=prefix)
            self._snapshot.prepare(layouts(held))

    def note_step(self, step: int) -> None:
        """Take note that a step was done, the last of `step` steps."""
        steps = self.config.save_steps
        self._is_owed |= steps is not None and step % steps == 0

    def heed(self, told: Notices, *, of_step: int, step: int) -> None:
        """Heed what ranks told each other with a step.

        The save under way goes on where all ranks are ready for its next phase. What they told before it was in its
        present phase does not count.

        Args:
            told: the sums over ranks.
            of_step: steps done when they told it, that one included.
            step: steps done by now; the same on every rank.

        Raises:
            CheckpointError: numbers to save are not finite.
        """
        if of_step <= self._phase_since:
            return
        self._is_owed |= told.save > 0
        if self._save is not None and told.ready == self.collectives.topology.world_size:
            self._phase_since = step
            self._enter_next_phase(self._save, failed=told.failed > 0)

    def finish(self) -> None:
        """Wait until no save is under way.

        Raises:
            CheckpointError: numbers to save are not finite.
        """
        while (save := self._save) is not None:
            watch.phase(f"writing the checkpoint {save.folder}")
            while save.thread is not None and save.thread.is_alive():
                save.thread.join(_ROUND_SECONDS)
                watch.phase(f"writing the checkpoint {save.folder}")
            self._enter_next_phase(save, failed=self._is_any(save.failure is not None))

    def insist(self, again: Callable[[], None], *, is_stopped: Callable[[], bool]) -> None:
        """Wait for the save under way; where it failed, try again after each pause, for half an hour in all.

        Args:
            again: starts the save once more.
            is_stopped: whether a signal asked this rank to stop. Where it did on any rank, there are seconds left.

        Raises:
            NotSavedError: no try succeeded.
        """
        self.finish()
        pauses, hurries = iter(LAST_PAUSES), False
        while self.failure:
            if not hurries and self._is_any(is_stopped()):
                pauses, hurries = iter(STOP_PAUSES), True
            pause = next(pauses, None)
            if pause is None:
                reason = f"{self.failure}; no further try"
                log.error("%s", reason)  # on all ranks: an exception that ends a process with a status says nothing
                raise on_all_ranks(NotSavedError(reason))
            if self.collectives.topology.is_main:
                log.error("the last checkpoint of this run is not written; the next try is in %g s", pause)
            self._pause(pause, is_stopped if not hurries else lambda: False)
            again()
            self.finish()

    def _pause(self, seconds: float, is_over: Callable[[], bool]) -> None:
        """Sleep on all ranks in rounds, since a rank that waits for a disk does not hang, until it is over on any."""
        while seconds > 0 and not self._is_any(is_over()):
            watch.phase("waiting to save again")
            time.sleep(min(seconds, _ROUND_SECONDS))
            seconds -= _ROUND_SECONDS

    def _is_any(self, flag: bool) -> bool:
        return any(self.collectives.gather_objects(flag))

    def _global_size(self, held: Mapping[str, Layout]) -> int:
        return sum(self.collectives.gather_objects(sum(layout.size for layout in held.values())))

    def take_completed(self) -> list[tuple[Step, Path]]:
        """The last step and the folder of each checkpoint that has got its name since the last call."""
        taken, self._completed = self._completed, []
        return taken

    @contextlib.contextmanager
    def rescued(self) -> Iterator[None]:
        """Where an error ends the run within a `with` block, bring the save under way to its end."""
        try:
            yield
        except BaseException:
            self._rescue()
            raise

    def _rescue(self) -> None:
        """Write and name the checkpoint under way without the collectives: other ranks may have ended already."""
        save, self._save = self._save, None
        if save is None or save.thread is None:
            return
        save.thread.join()
        topology, deadline = self.collectives.topology, time.monotonic() + _RESCUE_SECONDS
        if save.failure is None and not save.is_naming and topology.is_main:
            while not is_written(save.folder, ranks=topology.world_size) and time.monotonic() < deadline:
                time.sleep(0.1)
            save.run(lambda: self._name(save))
            save.thread.join()

    # Phases

    def _begin(self, folder: Path, size: int) -> None:
        if not self.collectives.topology.is_main:
            return
        if self.lock is not None:
            self.lock.renew()
        folder.parent.mkdir(parents=True, exist_ok=True)
        if self.failure:
            with contextlib.suppress(OSError):  # what the disk would not let it remove then
                remove_leftovers(folder.parent)
        _check_space(folder.parent, size)
        begin(folder)

    def _name(self, save: _Save) -> None:
        complete(save.folder, save.about, ranks=self.collectives.topology.world_size)
        pruned = prune(self.config, newest=save.folder) if save.prunes else []
        if self.uploads is not None:
            self.uploads.on_complete(save.folder, prunes=save.prunes)
            for path in pruned:
                self.uploads.on_prune(path)

    def _enter_next_phase(self, save: _Save, *, failed: bool) -> None:
        topology = self.collectives.topology
        if failed:
            self._save = None
            if topology.is_main:
                abandon(save.folder)
            failures = self.collectives.gather_objects(_describe(save.failure))
            rank, (is_fatal, reason) = next((rank, found) for rank, found in enumerate(failures) if found is not None)
            reason = f"rank {rank}: {reason}" if topology.world_size > 1 else reason
            if is_fatal:
                raise on_all_ranks(CheckpointError(f"the checkpoint {save.folder} was not written: {reason}"))
            self._note_failure(save, reason)
        elif not save.is_naming:
            save.is_naming, save.thread = True, None
            if topology.is_main:
                save.run(lambda: self._name(save))
        else:
            self._save, self.failure, self.newest = None, "", save.folder
            self._completed.append((save.step, save.folder))

    def _note_failure(self, save: _Save, reason: str) -> None:
        """A save that failed ends nothing: the next try is soon."""
        self.failure = f"the checkpoint {save.folder} was not written: {reason}"
        self.saved_step, self._next_time = None, time.monotonic() + _RETRY_SECONDS
        if self.collectives.topology.is_main:
            log.error("%s; another try follows", self.failure)


def _check_space(root: Path, size: int) -> None:
    free = shutil.disk_usage(root).free
    if free < size:
        raise CheckpointError(
            f"{root} has {size_text(free)} of free space, and a checkpoint takes {size_text(size)}; free space "
            f"there, or choose another folder with {setter('model_save_dir')}"
        )


def _describe(failure: Exception | None) -> tuple[bool, str] | None:
    """(whether training must stop, the reason) of a failure."""
    return None if failure is None else (isinstance(failure, NotFiniteError), explain(failure))

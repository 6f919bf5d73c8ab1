"""Every error that this library raises on purpose. All derive from `PLSCError`.

A message names the object, what was found, what was expected, and what to do.
"""


class PLSCError(Exception):
    """Base class of the library's errors.

    Attributes:
        is_on_all_ranks: whether every rank raises it at the same place, so that the others need not be told of it.

    Example:
        >>> try:
        ...     entry.train()
        ... except plsc.PLSCError as error:
        ...     sys.exit(str(error))
    """

    is_on_all_ranks = False


class ConfigError(PLSCError, ValueError):
    """A setting has a wrong name, type or value, or two settings contradict each other."""


class MissingDependencyError(PLSCError, ImportError):
    """An optional package is not installed. The message says what to install."""


class DistributedError(PLSCError):
    """The launcher, the device or the ranks do not fit together."""


class DataError(PLSCError):
    """A data set, record, image or verification set is missing, damaged or of another kind than its name says."""


class StorageError(PLSCError):
    """The system cannot read data that may be sound: too many open files, no memory, a disk or network file system that
    fails, a file that vanished after it was opened. It is never passed over as a bad image.
    """


class CheckpointError(PLSCError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(PLSCError):
    """Training cannot continue, for example because the loss is not finite."""


class ExportError(PLSCError):
    """A model cannot be exported, or its export disagrees with the network that it comes from."""


class ServingError(PLSCError):
    """An exported model cannot be loaded, served or reached."""


class Interrupted(SystemExit):
    """A signal ended training, and all of it is saved: the same command with `auto_resume` goes on.

    Attributes:
        status: that of the process.
        is_on_all_ranks: as of `PLSCError`.

    A process that does not catch it ends with status 75 (EX_TEMPFAIL: try again), without a traceback.

    Example:
        >>> try:
        ...     entry.train()
        ... except plsc.Interrupted as interruption:
        ...     upload_logs()
        ...     raise
    """

    status = 75
    is_on_all_ranks = False

    def __init__(self, message: str) -> None:
        super().__init__(self.status)
        self.message = message

    def __str__(self) -> str:
        return self.message


class NotSavedError(CheckpointError, SystemExit):
    """Training is complete, or was stopped by a signal, and its last checkpoint could not be written after many tries.

    A process that does not catch it ends with status 74 (EX_IOERR), without a traceback.

    Example:
        >>> try:
        ...     entry.train()
        ... except plsc.NotSavedError as error:
        ...     sys.exit(str(error))
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 74

"""Every error this library raises on purpose. All derive from `PLSCError`.

A message names the object, what was found, what was expected, and what to do.
"""


class PLSCError(Exception):
    """Base of the library's own errors."""


class ConfigError(PLSCError, ValueError):
    """A setting has a wrong name, type or value, or two settings contradict each other."""


class MissingDependencyError(PLSCError, ImportError):
    """A package that an extra installs is not there."""


class DistributedError(PLSCError):
    """The launcher, the device or the ranks do not fit together."""


class DataError(PLSCError):
    """A data set, record, image or verification set cannot be read as what it claims to be."""


class CheckpointError(PLSCError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class TrainingError(PLSCError):
    """Training cannot go on, for example because the loss is no longer finite."""


class ExportError(PLSCError):
    """A model cannot be exported, or its export disagrees with the network it came from."""


class ServingError(PLSCError):
    """An exported model cannot be loaded, served or reached."""

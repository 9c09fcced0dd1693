"""Errors whose message is the sentence the user reads; programs print it without a traceback and exit with its status."""


class UserError(Exception):
    """Something the user can mend. The message names the thing and the remedy."""

    exit_status = 2


class ConfigError(UserError):
    """A key that is unknown, missing, of the wrong type, or that contradicts another."""


class DataError(UserError):
    """A dataset that is missing, empty or unreadable, or an image that cannot be decoded."""


class WorkdirError(UserError):
    """A work directory that cannot be written, is in use, or belongs to another run."""


class BucketError(WorkdirError, OSError):
    """A bucket that cannot be reached, read or written; what a full disk is to a folder, hence an OSError too."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read."""


class Refused(UserError):
    """A combination of base, papers and settings that makes no sense."""


class NonFiniteLoss(UserError):
    """The loss or its gradient became NaN or infinite."""

    exit_status = 3


class HostsDiffer(UserError):
    """Hosts of one run that do not hold the same code, settings or data."""


class HostLost(UserError):
    """A host that never came, or is gone. The same command, given again on all hosts, goes on: status 75."""

    exit_status = 75

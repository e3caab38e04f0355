"""The errors a user of ddfnet can cause and can mend."""


class UserError(ValueError):
    """A mistake in what the user gave (a key, a path, a file): the message names it and the fix.

    `train.py` and `eval.py` print the message alone, without a traceback, and exit with code 2.
    Every other exception is a defect of ours and keeps its traceback.
    """


class ConfigError(UserError):
    """A configuration file or override that cannot be used."""


class DataError(UserError):
    """A data set that is missing, incomplete or unreadable."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, unsafe to load, or made for something else."""


class NonFiniteLossError(RuntimeError):
    """Training met a loss that is NaN or infinite and stopped before saving anything it touched."""

"""The errors a user of ddfnet can cause and can mend."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in what the user gave (a key, a path, a file): the message names it and the fix.

    `train.py` and `eval.py` print the message alone, without a traceback, and exit with code 2.
    Every other exception is a defect of ddfnet and keeps its traceback.

    Attributes:
        one_process: raised on one process among several (an image it read, say). Otherwise all raise the same.
    """

    one_process = False


class ConfigError(UserError):
    """A configuration file or override that cannot be used."""


class DataError(UserError):
    """A data set that is missing, incomplete or unreadable."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, unsafe to load, or made for something else."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint of the right run that cannot be read, or does not hold what it must: an older one may do."""


class FollowingError(RuntimeError):
    """Another process has ended the run, and shows why.

    Attributes:
        code: exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StorageError(RuntimeError):
    """The disk of a run is full or does not answer: what was saved before is whole, the run can start again."""


class NonFiniteLossError(RuntimeError):
    """Training met a loss that is NaN or infinite and stopped before saving anything it touched.

    Attributes:
        step: at which.
    """

    def __init__(self, message: str, *, step: int = -1) -> None:
        super().__init__(message)
        self.step = step


@contextmanager
def raised_on_one_process() -> Iterator[None]:
    """Marks user errors raised in the block as those of one process, which has to speak for itself."""
    try:
        yield
    except UserError as error:
        error.one_process = True
        raise


@contextmanager
def about(key: str) -> Iterator[None]:
    """Puts the key that says what was to be read before the message of a user error."""
    try:
        yield
    except UserError as error:
        error.args = (f"{key}: {error}",)
        raise


def did_you_mean(name: str, known: Iterable[str], *, most: int = 3, otherwise: str = "") -> str:
    """`did you mean A or B?` with the known names nearest to a mistyped one, or `otherwise` where none is near."""
    near = nearest(name, known, most=most)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def nearest(name: str, known: Iterable[str], *, most: int) -> list[str]:
    """The known names nearest to a mistyped one; those that differ in capitals alone, if there are any."""
    names = list(known)
    same = [other for other in names if other.lower() == name.lower()]
    return same or difflib.get_close_matches(name, names, n=most, cutoff=0.6)

"""The exceptions that a command turns into a line and an exit status, and how they show a value."""

import reprlib
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave (a file, a key, a value).

    Its message is a single line that names the bad value and the fix. The command-line tools print it on stderr
    and exit with status 2; a traceback would only hide it.
    """


class SharedError(UserError):
    """A mistake that all processes of a group raise together; the first one tells it."""


class Interrupted(Exception):
    """The run was asked to stop and has written a checkpoint; exit status 130.

    Args:
        path: the checkpoint to resume from; none if nothing has been written.
    """

    def __init__(self, path: str = "") -> None:
        super().__init__(f"interrupted; resume with --resume {path}" if path else "interrupted; nothing was written")
        self.path = path


def short(value: Any) -> str:
    """A value for a message: a line of bounded length, whatever a file holds.

    >>> short("x" * 1000), short([[[[[[[1]]]]]]])
    ("'xxxxxxxxxxxx...xxxxxxxxxxxxx'", '[[[[[[...]]]]]]')
    """
    try:
        return reprlib.repr(value)[:200]
    except ValueError:  # Python writes out no number of more than 4300 digits
        return f"{type(value).__name__} too long to be shown"

"""The one exception that means: the user's input is wrong, and this line says how to mend it."""


class UserError(ValueError):
    """A mistake in what the user gave (a file, a key, a value).

    Its message is a single line that names the bad value and the fix. The command-line tools print it on stderr
    and exit with status 2; a traceback would only hide it.
    """

"""The one exception this package raises for what a person typed or a file holds."""


class InputError(ValueError):
    """Bad input: the message says in one line what was wrong, the value, what is allowed and what to do.

    Scripts print it without a traceback and exit with status 2; library users may catch it as a `ValueError`.
    """


def one_line(error: Exception) -> str:
    """What another library's error says, in one line."""
    return " ".join(str(error).split())

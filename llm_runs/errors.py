"""The error that a user can do something about: the command line prints it as one line, without a traceback."""


class InputError(ValueError):
    """Something given by the user, or by their machine, cannot be used; the message says what, where and what to do."""

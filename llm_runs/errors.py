"""The error that a user can do something about: the command line prints it as one line, without a traceback."""


class InputError(ValueError):
    """Something given by the user, or by their machine, cannot be used; the message says what, where and what to do.

    The message is one line, also where it quotes what a library said in several, and where what it quotes is endless it is cut.
    """

    def __init__(self, message: object) -> None:
        line = " ".join(filter(None, map(str.strip, str(message).splitlines())))
        super().__init__(line if len(line) <= 2500 else f"{line[:1800]} [...] {line[-600:]}")  # the advice comes last

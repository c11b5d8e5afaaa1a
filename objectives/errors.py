"""The one error that this package raises for bad input."""


class ObjectiveError(ValueError):
    """An unknown objective, a hyper-parameter outside its domain, or a batch that lacks what a loss needs. Its message is one line."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


def one_line(message: object) -> str:
    """A message without line breaks; the middle is cut out of one that quotes something endless."""
    line = " ".join(filter(None, map(str.strip, str(message).splitlines())))
    return line if len(line) <= 2500 else f"{line[:1800]} [...] {line[-600:]}"  # the advice comes last

"""The one error that this package raises for bad input."""

from objectives.errors import one_line


class BanditError(ValueError):
    """A world that is not a preference bandit, or an objective that needs what a bandit cannot give. Its message is one line."""

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))

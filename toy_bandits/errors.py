"""The one error that this package raises for bad input."""


class BanditError(ValueError):
    """A world that is not a preference bandit, or an objective that needs what a bandit cannot give."""

"""The one error that this package raises for bad input."""


class ObjectiveError(ValueError):
    """An unknown objective, a hyper-parameter outside its domain, or a batch that lacks what a loss needs."""

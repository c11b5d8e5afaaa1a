"""What the command lines of this package share."""

from __future__ import annotations

import ast
from typing import Any

from toy_bandits.errors import BanditError


def setting(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` taken apart; a value that is no Python literal stays a text.

    Raises:
        BanditError: there is no name or no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise BanditError(f"--set: expected NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value

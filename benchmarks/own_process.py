"""A measurement in a process of its own, forked from a server that has loaded the libraries and done nothing else: its memory is its
own, and nothing is loaded again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any


class EndedEarly(Exception):
    """The process ended without a result."""


def in_a_process(function: Callable[..., Any], *arguments: Any, libraries: Sequence[str]) -> Any:
    """What the function returns there.

    Args:
        function: of a module.
        arguments: its own.
        libraries: modules that the server loads once.

    Raises:
        EndedEarly: with the process's exit code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(libraries))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise EndedEarly(f"its process ended with exit code {process.exitcode}") from None
    finally:
        process.join()


def _send(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))

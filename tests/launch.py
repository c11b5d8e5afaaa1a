"""Several processes of one launch on this machine, as torchrun starts them, but from a server that has imported everything once."""

from __future__ import annotations

import faulthandler
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forkserver import CONTEXT


def launch(
    size: int, folder: Path, work: Callable[..., Any], *arguments: Any, exits: int | None = None, patience: float = 120
) -> list[Any]:
    """What `work(*arguments)` returns in each of `size` processes; or, with `exits`, nothing, but each must end with that status.

    `work` must be importable: a function of a module. Files of its own go into `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [CONTEXT.Process(target=_one, args=(rank, size, port, folder, work, arguments)) for rank in range(size)]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(patience)
            assert process.exitcode is not None, f"a process is still running after {patience} s\n{_said(folder)}"
    finally:
        for process in started:
            process.kill()
    codes = [process.exitcode for process in started]
    assert codes == [exits or 0] * size, f"exit codes {codes}\n{_said(folder)}"
    if exits is not None:
        return []
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]


def _said(folder: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(folder.glob("stderr-*")))


def _one(rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }
    sys.stderr = (folder / f"stderr-{rank}").open("w", buffering=1)
    faulthandler.dump_traceback_later(60, file=sys.stderr)
    try:
        result = work(*arguments)
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        raise
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))

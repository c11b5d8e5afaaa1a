"""The errors that a user can do something about: the command line prints them as one line, without a traceback."""

import errno

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
# What libraries that write by themselves say of a full disk: safetensors, and torch's writer of checkpoints.
_FULL_WORDS = ("No space left on device", "os error 28", "PytorchStreamWriter failed", "unexpected pos")


class InputError(ValueError):
    """Something given by the user, or by their machine, cannot be used; the message says what, where and what to do.

    The message is one line, also where it quotes what a library said in several, and where what it quotes is endless it is cut.
    """

    def __init__(self, message: object) -> None:
        line = " ".join(filter(None, map(str.strip, str(message).splitlines())))
        super().__init__(line if len(line) <= 2500 else f"{line[:1800]} [...] {line[-600:]}")  # the advice comes last


def of_the_machine(error: BaseException) -> str | None:
    """In a line, what the machine lacks and what to do, where an exception is about that: room on a disk, or the right to write."""
    text = " ".join(str(error).split())[:300]
    if (isinstance(error, OSError) and error.errno in _FULL) or any(words in text for words in _FULL_WORDS):
        return f"no room on the disk ({text}); what is complete is kept: free some and give the same command again"
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return f"a file or folder cannot be written ({text}); what is complete is kept: make it writable, or give another --out"
    if isinstance(error, MemoryError):
        return f"out of memory ({text or 'on this machine'}); what is complete is kept: see the batch sizes in the configuration"
    return None

"""Turns errors that the machine causes into messages, such as too little memory or no permission to write."""

import errno
import os

from glm2core.errors import UserError, masked, printable, shown_names

_MORE_MEMORY = (
    "End other programs, raise this process's memory limit (ulimit, or the container's limit), or use settings that "
    "need less memory; `python -m glm2core memory` shows how much training needs."
)
# Messages of torch and the C library; torch has no error type of its own for a CPU out of memory.
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "can't start new thread")
_FIXES = {
    errno.EACCES: "It may belong to another user. Fix its permissions, or name a different place.",
    errno.EPERM: "It may belong to another user. Fix its permissions, or name a different place.",
    errno.EROFS: "Name a writable place.",
    errno.EISDIR: "There is a folder where a file should be. Move the folder away.",
    errno.ENOTDIR: "There is a file where a folder should be. Move the file away.",
    errno.EEXIST: "Something is already there. Move it away.",
    errno.ELOOP: "The links form a loop: fix them.",
    errno.ENAMETOOLONG: "Use a shorter name.",
    errno.ENOSPC: "Free space on that disk.",
    errno.EDQUOT: "Free space: your share of that disk is used up.",
    errno.EFBIG: "Raise the limit on a file's size (ulimit -f).",
    errno.EMFILE: "Raise the limit on open files (ulimit -n).",
    errno.ENFILE: "Raise the limit on open files.",
    errno.EIO: "The disk or network that holds it has failed.",
    errno.ESTALE: "The network disk that holds it has failed.",
}


def sentence_of(error: Exception) -> str | None:
    """The message for an error that the user can fix; None for a bug, which keeps its traceback."""
    sentence = str(error) if isinstance(error, UserError) else _of_memory(error) or _of_system(error)
    return None if sentence is None else masked(sentence)


def _of_memory(error: Exception) -> str | None:
    reason = next(iter(str(error).strip().splitlines()), "")
    without = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not without and isinstance(error, (RuntimeError, OSError)):
        without = any(words in str(error).lower() for words in _NO_MEMORY)
    if not without:
        return None
    return f"there is not enough memory{f' ({printable(reason)[:300]})' if reason else ''}. {_MORE_MEMORY}"


def _of_system(error: Exception) -> str | None:
    if not isinstance(error, OSError) or error.errno not in _FIXES:
        return None
    place = shown_names([os.fsdecode(error.filename)]) if isinstance(error.filename, (str, bytes)) else "a file"
    return f"{place}: {os.strerror(error.errno)}. {_FIXES[error.errno]}"

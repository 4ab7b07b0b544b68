"""What went wrong on the user's side, in one line that names the input and the remedy."""

import errno
import os
import re

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
OTHERS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG}
# How writers that are not Python's report an OSError of theirs: safetensors, SQLite, torch.
REPORTS = {
    r"os error (\d+)": None,
    "database or disk is full|PytorchStreamWriter failed|inline_container.*unexpected pos": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
}


class UserError(ValueError):
    """Shown by the command line as one line, without a stack trace, with exit code 2."""

    code = 2


class PartlyDone(UserError):
    """What is left when all else is done."""

    code = 3


def first_line(error: BaseException) -> str:
    """What another library says was wrong, without its further lines; the error's kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def system_error(error: BaseException | None) -> str | None:
    """The line for a disk that is full, or files that the system does not let us use; None for all other errors."""
    while error is not None:
        code, file = (error.errno, error.filename) if isinstance(error, OSError) else (_reported(str(error)), None)
        if code in FULL | FORBIDDEN | OTHERS:
            remedy = {
                **dict.fromkeys(FULL, "free some space and run the same command again"),
                **dict.fromkeys(FORBIDDEN, "check its permissions, or give another folder"),
                errno.EMFILE: "raise the limit (ulimit -n)",
            }.get(code or 0, "check the disk and the path")
            return f"{file or 'writing failed'}: {os.strerror(code or 0)}; {remedy}"
        error = error.__cause__
    return None


def _reported(message: str) -> int | None:
    for pattern, code in REPORTS.items():
        if match := re.search(pattern, message):
            return code or int(match[1])
    return None

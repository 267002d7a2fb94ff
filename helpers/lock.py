"""One process at a time writes into a run's folder."""

import os
import socket
import warnings
from pathlib import Path
from typing import IO

LOCK = ".lock"


class FolderLock:
    """Held from `take` to `release`; the system lets go of it when the process is killed.

    Example:
        >>> lock = FolderLock(Path("runs/03/sft"))
        >>> lock.take()
        >>> lock.release()
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self._file: IO | None = None

    def take(self) -> None:
        """Raises OSError, in one sentence, where another process is at work in the folder."""
        self._make_folder()
        while self._file is None:
            file = self.path.open("a+", encoding="utf-8")
            try:
                _lock(file)
            except (BlockingIOError, PermissionError) as error:
                raise OSError(self._in_use(file)) from error
            except OSError as error:
                warnings.warn(
                    f"{self.path.parent} lies where files cannot be locked ({error.strerror}): "
                    "nothing keeps a second training out of it.",
                    stacklevel=4,
                )
            if _is_still(file, self.path):  # and was not deleted by who held it before
                self._file = file
            else:
                file.close()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()

    def _make_folder(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"{folder} cannot be made a folder ({error.strerror}): give another folder."
            ) from error

    def release(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            if os.name == "posix":
                self.path.unlink(missing_ok=True)
            file.close()

    def _in_use(self, file: IO) -> str:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        return (
            f"{self.path.parent} is in use by {holder}: wait until that training has ended, or "
            "give another folder."
        )


def _lock(file: IO) -> None:
    """Raises OSError where another process, or another run of this one, holds it."""
    if os.name == "posix":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        file.seek(2**20)  # behind what is written, which stays readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def _is_still(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

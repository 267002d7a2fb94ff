"""Files that are whole after a kill, a full disk or a lost power supply: the old or the new one."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def write_json(path: str | Path, value: Any, *, indent: int = 2) -> None:
    """Written beside, flushed and renamed: there is the old file or the new one, never half.

    Raises OSError, in one sentence that names the path, where the disk is full.
    """
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """A text in place of a file, atomically; see `write_json`."""
    with written_aside(Path(path)) as beside:
        # Half a surrogate pair, which UTF-8 cannot hold, becomes its JSON escape.
        beside.write_bytes(text.encode("utf-8", "backslashreplace"))


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Gives the place where a file or a folder is written, which then takes its place at `path`.

    Example:
        >>> with written_aside(Path("runs/model")) as beside:
        ...     model.save_pretrained(beside)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            yield beside
            flush(beside)
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(beside, path)
            flush_folder(path.parent)
    except BaseException:
        remove(beside)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, a disk that takes no more is answered in a sentence that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        folder = path if path.is_dir() else path.parent
        raise OSError(
            f"{path} cannot be written, because the disk is full ({os.strerror(error.errno)}): "
            f"free space where {folder} lies, or give another folder, and start again."
        ) from error


def flush(path: Path) -> None:
    """Hand a file, or all files of a folder, to the disk before anything is renamed."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
    if path.is_dir():
        flush_folder(path)


def flush_folder(folder: Path) -> None:
    """The same for the names that a folder holds; Windows has no such call."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that knows no fsync of a folder
            os.fsync(opened)
    finally:
        os.close(opened)


def set_aside(folder: Path, files: Iterable[Path]) -> Path:
    """Move files of a folder into a new one beside it, and return that: nothing is lost.

    The last of `files` should be the one that makes the others what they are, such as settings: a
    kill in between then leaves it where it was.
    """
    number = 1
    while (aside := folder.with_name(f"{folder.name}-before-{number}")).exists():
        number += 1
    aside.mkdir()
    for path in files:
        os.replace(path, aside / path.name)
    return aside


def remove(path: Path) -> None:
    """A file or a folder with all that it holds; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

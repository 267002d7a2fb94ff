"""`workbook lab`: copies of the lessons in work/, and JupyterLab on the first of them."""

import os
import secrets
import shutil
import socket
import sys
import time
from pathlib import Path

from workbook.process import restart
from workbook.setup import ROOT

FIRST_LESSON = "01_baseline_eval.ipynb"
SETTINGS = ROOT / "workbook" / "jupyter"  # settings that replace JupyterLab's defaults: no news
ADDRESS = "127.0.0.1"  # never a name or 0.0.0.0: the notebook server runs any code it is sent


def open_lab(port: int | None = None, browser: bool = True) -> int:
    """Copy the lessons that are not in work/ yet and become a JupyterLab server.

    The server takes over this process, so Ctrl-C and a signal reach it and its kernels directly.
    """
    lessons, work = ROOT / "lessons", ROOT / "work"
    copy_lessons(lessons, work)
    for name in outdated(lessons, work):
        print(f"{name} has changed in the course: `python3 -m workbook update` renews your copy.")
    port = free_port(port)
    token = secrets.token_urlsafe(24)
    page = f"http://{ADDRESS}:{port}/lab/tree/work/{FIRST_LESSON}?token={token}"
    print(f"JupyterLab runs at {page} (ready in a few seconds; Ctrl-C here stops it).", flush=True)
    environ = {**os.environ, "JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1"}
    return restart(sys.executable, ["-m", "jupyterlab", *options(port, browser)], environ)


def options(port: int, browser: bool) -> list[str]:
    """The server's command line; the token goes by the environment, which `ps` does not show."""
    return [
        f"--ServerApp.ip={ADDRESS}",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={ROOT}",
        f"--ServerApp.open_browser={browser}",
        f"--LabApp.default_url=/lab/tree/work/{FIRST_LESSON}",
        f"--LabApp.app_settings_dir={SETTINGS}",
        "--MappingKernelManager.default_kernel_name=python3",  # the Python that runs the server
        "--ServerApp.answer_yes=True",  # Ctrl-C stops at once instead of asking
        "--Application.log_level=ERROR",  # the line above is all that a learner has to read
        *(["--ServerApp.allow_root=True"] if is_root() else []),
    ]


def copy_lessons(lessons: Path, work: Path) -> list[Path]:
    """Copy each lesson that work/ does not hold; what the learner has there is never touched."""
    sources = sorted(lessons.glob("*.ipynb"))
    if not sources:
        raise FileNotFoundError(f"There is no lesson in {lessons}: is this a complete clone?")
    work.mkdir(exist_ok=True)
    fresh = [source for source in sources if not (work / source.name).exists()]
    for source in fresh:
        copy_file(source, original_of(work / source.name))
        copy_file(source, work / source.name)
    return [work / source.name for source in fresh]


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that the target is never half there."""
    target.parent.mkdir(exist_ok=True)
    beside = target.with_name(target.name + ".new")
    shutil.copyfile(source, beside)
    os.replace(beside, target)


def original_of(copy: Path) -> Path:
    """Where the lesson is kept as it was when the learner's copy was made or last updated."""
    return copy.parent / ".originals" / copy.name


def outdated(lessons: Path, work: Path) -> list[str]:
    """The copies whose lesson has changed in the course since."""
    changed = []
    for lesson in sorted(lessons.glob("*.ipynb")):
        original = original_of(work / lesson.name)
        if original.exists() and original.read_bytes() != lesson.read_bytes():
            changed.append(lesson.name)
    return changed


def set_aside_name(copy: Path) -> Path:
    """The name under which a learner's copy is kept when another takes its place."""
    return copy.with_stem(f"{copy.stem}.{time.strftime('%Y%m%d-%H%M%S')}")


def reset_lesson(number: str, lessons: Path, work: Path) -> Path | None:
    """Put a fresh copy of a lesson into work/; the old one is renamed, and its new name returned.

    Raises: ValueError for a lesson that does not exist.
    """
    found = [source for source in sorted(lessons.glob("*.ipynb")) if source.stem[:2] == number]
    if not found:
        known = ", ".join(source.stem[:2] for source in sorted(lessons.glob("*.ipynb")))
        raise ValueError(f'There is no lesson "{number}"; there are: {known or "none"}.')
    old, aside = work / found[0].name, None
    if old.exists():
        aside = set_aside_name(old)
        os.replace(old, aside)
    copy_lessons(lessons, work)
    return aside


def free_port(wanted: int | None) -> int:
    """`wanted` if nothing listens there, or else an error; without a wish the first from 8888."""
    for port in [wanted] if wanted else range(8888, 8988):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, port))
                return port
            except OSError:
                continue
    taken = f"Port {wanted} is" if wanted else "The ports 8888 to 8987 are"
    raise OSError(f"{taken} in use: choose another with --port.")


def is_root() -> bool:
    """True in containers that run as root, where Jupyter would refuse to start."""
    return hasattr(os, "geteuid") and os.geteuid() == 0

"""Further virtual environments, for packages that a learner's own must not hold.

Tests ask for them: nbgrader would add its menus to every JupyterLab, and an engine of a few
gigabytes is wanted by its own tests only. Standard library only, as `setup.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from workbook import setup


def extra_environment(
    name: str, requirements: Sequence[str], *, unwanted: Sequence[str] = ()
) -> str:
    """Return the Python of `.venv-<name>`, made and filled on first use.

    It is kept until the requirements change, and then made anew. Packages in `unwanted` are
    removed after the installation: those that come along and break it.

    Raises: setup.SetupError, one sentence, where the packages cannot be had.
    Example: `extra_environment("nbgrader", ["nbgrader==0.9.6"])`
    """
    venv = setup.ROOT / f".venv-{name}"
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = setup.fingerprint([*requirements, *(f"not {package}" for package in unwanted)])
    stamp = venv / "workbook-packages.json"
    if python.exists() and wanted in setup.read_stamps(stamp):
        return str(python)
    shutil.rmtree(venv, ignore_errors=True)
    setup.make_venv(venv)
    setup.install(str(python), list(requirements))
    if unwanted:
        setup.remove(str(python), list(unwanted))
    setup.add_to_path(str(python))
    setup.write_stamps(stamp, [wanted])
    return str(python)

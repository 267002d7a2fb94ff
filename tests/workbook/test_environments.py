"""Further environments: made once, made anew for other requirements, left alone otherwise."""

import subprocess

import pytest

from workbook import setup
from workbook.environments import extra_environment


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course folder of its own; a package that pip can build without an index."""
    package = tmp_path / "tiny"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (package / "backend.py").write_text(BACKEND)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    return tmp_path


BACKEND = '''"""A build backend of the standard library: writes a wheel with one module."""
import zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("tiny.py", "VALUE = 1")
        info = "tiny-1.0.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any")
        wheel.writestr(info + "RECORD", "")
    return name
'''


def imports(python: str, module: str) -> bool:
    """Whether that Python finds the module."""
    command = [python, "-c", f"import {module}"]
    return subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL).returncode == 0


def test_environment_is_made_once_and_anew_for_other_requirements(course):
    needs = [str(course / "tiny")]
    python = extra_environment("own", needs, unwanted=["setuptools"])
    assert python.startswith(str(course / ".venv-own")) and imports(python, "tiny")
    assert not imports(python, "setuptools")
    mark = course / ".venv-own" / "mark"
    mark.touch()
    assert extra_environment("own", needs, unwanted=["setuptools"]) == python and mark.exists()
    # Other requirements, which cannot be had: one sentence, and the next use starts over.
    with pytest.raises(setup.SetupError, match="failed"):
        extra_environment("own", [*needs, str(course / "absent")])
    assert not mark.exists() and not (course / ".venv-own" / "workbook-packages.json").exists()

"""environment.yml, pyproject.toml and the READMEs name one package set."""

import re
import tomllib

import yaml

from workbook.setup import ROOT

NINE = {
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "jupyterlab",
    "matplotlib",
    "ipywidgets",
    "vllm",
}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def conda() -> tuple[list[str], list[str]]:
    """The conda entries and the pip entries of environment.yml."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    return [entry for entry in entries if isinstance(entry, str)], pip


def test_conda_has_the_core_and_the_gpu_pins_and_nothing_else():
    _, pip = conda()
    wanted = project()
    assert sorted(pip) == sorted(wanted["dependencies"] + wanted["optional-dependencies"]["gpu"])


def test_conda_names_all_nine_packages_with_a_pin():
    _, pip = conda()
    pinned = {entry.split("==")[0] for entry in pip if re.match(r"[\w-]+==\d", entry)}
    assert NINE <= pinned


def test_vllm_is_asked_for_where_it_has_wheels():
    _, pip = conda()
    (vllm,) = [entry for entry in pip if entry.startswith("vllm")]
    assert "sys_platform == 'linux'" in vllm and "platform_machine == 'x86_64'" in vllm


def test_conda_python_is_one_that_the_course_accepts():
    python, pip = conda()[0]
    assert (python, pip) == ("python=3.11", "pip")
    assert project()["requires-python"] == ">=3.11,<3.14"


def test_every_pin_is_exact():
    extras = project()["optional-dependencies"]
    assert set(extras) == {"gpu", "awq", "test", "demo"}
    pins = project()["dependencies"] + [pin for extra in extras.values() for pin in extra]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+(; .*)?", pin) for pin in pins)

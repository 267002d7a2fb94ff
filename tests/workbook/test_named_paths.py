"""Files that the documents and the code name are there, under that name."""

import re
from pathlib import Path

import helpers.training

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(?<![\w/.<>{}*-])(?:helpers|workbook|docs)/[\w./*<>{}-]*\w")
STANDS_FOR_SEVERAL = re.compile(r"[*<>{}]|NN")


def documents() -> list[Path]:
    folders = [ROOT / name for name in ("helpers", "workbook", "docs")]
    found = [path for folder in folders for path in folder.rglob("*")]
    return [*ROOT.glob("*.md"), *(path for path in found if path.suffix in (".md", ".py", ".yaml"))]


def test_named_paths_exist():
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in documents()
        for name in NAMED.findall(path.read_text(encoding="utf-8"))
        if not STANDS_FOR_SEVERAL.search(name) and not (ROOT / name).exists()
    }
    assert not missing


def test_the_modules_that_the_training_package_lists_exist():
    listed = re.findall(r"(?<![\w/])\w+\.py", helpers.training.__doc__)
    folder = ROOT / "helpers" / "training"
    assert "loop.py" in listed
    assert [name for name in listed if not (folder / name).exists()] == []

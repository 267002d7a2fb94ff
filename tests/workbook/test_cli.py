"""The command line: help and mistyped verbs before any set-up, errors as one sentence."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from workbook import VERBS, __main__, cli, setup


@pytest.fixture
def no_setup(monkeypatch):
    def fail(**_):
        raise AssertionError("set-up began")

    monkeypatch.setattr(setup, "ensure", fail)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_without_set_up(no_setup, capsys, arguments):
    assert __main__.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown and meaning in shown for verb, meaning in VERBS.items())


def test_mistyped_verb_gets_the_nearest_one_without_set_up(no_setup, capsys):
    assert __main__.main(["docter"]) == 2
    assert capsys.readouterr().err == "There is no verb `docter`; did you mean `doctor`?\n"
    assert __main__.main(["zzz"]) == 2
    assert "the verbs are lab, " in capsys.readouterr().err


def test_failed_set_up_is_one_sentence(monkeypatch, capsys):
    def fail(**_):
        raise setup.SetupError("No disk.")

    monkeypatch.setattr(setup, "ensure", fail)
    assert __main__.main(["lab"]) == 2
    assert capsys.readouterr().err == "No disk.\n"


def test_verbs_of_the_help_are_those_of_the_command_line():
    commands = typer.main.get_command(cli.app).commands
    assert set(commands) == set(VERBS)
    assert all(command.help == VERBS[name] for name, command in commands.items())


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options(verb, capsys):
    assert cli.run_command([verb, "--help"]) == 0
    assert verb in capsys.readouterr().out


def test_usage_error_is_one_sentence(capsys):
    assert cli.run_command(["lab", "--port", "many"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.run_command(["lab", "--prot", "1"]) == 2
    assert "--prot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("line 3: no answer."), "line 3: no answer."),
        (FileNotFoundError(2, "No such file", "a.jsonl"), "[Errno 2] No such file: 'a.jsonl'"),
        (KeyError("x"), "KeyError: 'x' (WORKBOOK_DEBUG=1 shows where)"),
        (ValueError(), "ValueError:  (WORKBOOK_DEBUG=1 shows where)"),
    ],
)
def test_error_is_one_sentence(error, said):
    assert cli.sentence(error) == said


def test_traceback_only_on_demand(monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lab = ["lab", "--no-browser", "--port", str(taken.getsockname()[1])]
        assert cli.run_command(lab) == 2
        assert capsys.readouterr().err.count("\n") == 1
        monkeypatch.setenv("WORKBOOK_DEBUG", "1")
        assert cli.run_command(lab) == 2
        assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_stops_reading_hears_no_complaint():
    """`python3 -m workbook --help | head -1`"""
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run([sys.executable, "-m", "workbook", "--help"], stdout=writer,
                           stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, b"")

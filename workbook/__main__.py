"""`python3 -m workbook VERB`: set up on first use, then hand over to the command line."""

from __future__ import annotations

import os
import sys

# `-m` puts the folder at hand before everything else: a csv.py there is not ours to import.
if sys.path and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]

import difflib

from workbook import VERBS, process, setup


def usage() -> str:
    """The verbs and what they do, one a line."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:{width}}{meaning}" for verb, meaning in VERBS.items()]
    return "\n".join(["usage: python3 -m workbook VERB [options]   (or VERB --help)", "", *lines])


def unknown_verb(verb: str) -> str:
    """One sentence for a verb that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(verb, VERBS, n=1)
    meant = f"did you mean `{near[0]}`?" if near else f"the verbs are {', '.join(VERBS)}."
    return f"There is no verb `{verb}`; {meant}"


def extras_of(arguments: list[str]) -> list[str]:
    """The optional packages that a command needs: those of the tests, those of the demo's page."""
    if arguments[0] == "demo" and "--web" in arguments and not {"-h", "--help"} & {*arguments}:
        return ["demo"]
    if arguments[0] != "test":
        return []
    return ["test", "demo"] if "--all" in arguments else ["test"]


def main(arguments: list[str]) -> int:
    """Answer usage questions at once; set up, restart in the right Python, run the verb."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] not in VERBS:
        print(unknown_verb(arguments[0]), file=sys.stderr)
        return 2
    try:
        python = setup.ensure(extras=extras_of(arguments))
    except setup.SetupError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nSet-up was interrupted; the same command goes on from where it stopped.",
            file=sys.stderr,
        )
        return 130
    settings = process.process_settings(os.environ, command=arguments[0])
    if python != sys.executable or settings:
        # Thread and allocator settings are read once, when a process starts.
        return process.restart(python, ["-m", "workbook", *arguments], {**os.environ, **settings})
    from workbook.cli import run_command  # needs the packages, so not before this line

    return run_command(arguments)


def main_for_a_pipe(arguments: list[str]) -> int:
    """`main`, whose output may go to a program that stops reading, such as head."""
    try:
        try:
            return main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main_for_a_pipe(sys.argv[1:]))

"""Run code in a forked child of this process, with limits, and read its messages back.

The child sees every object of the parent (no pickling of a learner's closure) and can hurt
none: an endless loop, `os._exit`, a huge tensor or a changed random state end with the child.

A message counts only with the secret of its child, so text that learner code writes to every open
file is no message. Not promised: code that searches the frames or the memory of its own process
finds the secret, and code that kills its parent process succeeds. Where a result must hold
against such code, `workbook grade` adds limits around the whole process.
"""

import builtins
import faulthandler
import json
import os
import random
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field

import torch

from workbook.pristine import restore_settings, settings

LONGEST_OUTPUT = 2_000
MOST_BYTES = 4_000_000  # of all messages together; more is learner code writing to the pipe
CLOSED_FILES = 97  # exit status of a child whose pipe was closed


@dataclass
class ChildReport:
    """What a child sent, and how it ended: "finished", "timeout", "memory", "files" or "died"."""

    messages: list[dict] = field(default_factory=list)
    ending: str = "died"
    detail: str = ""


def why_no_fork() -> str | None:
    """The reason for which a child cannot be used here, in a few words; None where it can."""
    if not hasattr(os, "fork"):
        return "this system has no fork"
    if torch.cuda.is_initialized():
        return "CUDA is in use, and a CUDA process cannot be forked"
    return None


def run_forked(work: Callable, *, seconds: float = 5.0, memory_mb: int = 2048) -> ChildReport:
    """Call `work(send)` in a forked child; `send(dict)` hands one JSON message to the parent.

    The child and everything it started are killed after `seconds`. `memory_mb` bounds what it may
    allocate beyond what the parent holds (Linux).
    """
    secret = secrets.token_hex(16).encode()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_the_child(work, write_end, secret, memory_mb)
    os.close(write_end)
    try:
        data, closed = _read_until(read_end, secret, time.monotonic() + seconds)
        status = _exit_status(pid) if closed else None
    finally:
        os.close(read_end)
        _end(pid)
    return _report(_messages(data, secret), closed, status)


def _be_the_child(work: Callable, write_end: int, secret: bytes, memory_mb: int) -> None:
    child, getpid, write, leave, dumps = os.getpid(), os.getpid, os.write, os._exit, json.dumps
    write_end = _keep_only(write_end)

    def send(message: dict) -> None:
        if getpid() != child:  # a fork of learner code has come back with a result of its own
            leave(0)
        # The line break in front ends what learner code may have written to the pipe.
        data = b"\n" + secret + dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[write(write_end, data) :]
        except OSError:
            leave(CLOSED_FILES)

    try:
        isolate(memory_mb)
        work(send)
        send({"ending": "finished"})
    except MemoryError:
        send({"ending": "memory"})
    finally:
        leave(0)  # never back into the kernel's event loop, never its exit handlers


def _keep_only(descriptor: int) -> int:
    """Close every inherited file but one (the kernel's sockets and history); its new number."""
    kept = os.dup2(descriptor, 3, inheritable=False) if descriptor != 3 else 3
    os.closerange(4, min(os.sysconf("SC_OPEN_MAX"), 2**20))
    return kept


def _read_until(read_end: int, secret: bytes, deadline: float) -> tuple[bytes, bool]:
    """What came until the last message, the end of the pipe or the deadline; False: that one."""
    data, last = b"", b"\n" + secret + b'{"ending":'
    while (left := deadline - time.monotonic()) > 0 and len(data) < MOST_BYTES:
        if not select.select([read_end], [], [], left)[0]:
            return data, False
        chunk = os.read(read_end, 65_536)
        data += chunk
        # A process that the child left behind may hold the pipe open: do not wait for its end.
        if not chunk or last in data[-len(chunk) - len(last) :]:
            return data, True
    return data, len(data) >= MOST_BYTES


def _messages(data: bytes, secret: bytes) -> list[dict]:
    """The messages among the lines that were read; a torn one is none."""
    lines = data.split(b"\n")[:-1]
    found = [read_message(line[len(secret) :]) for line in lines if line.startswith(secret)]
    return [message for message in found if message is not None]


def read_message(text: bytes) -> dict | None:
    """A JSON object; None for anything else: learner code may have written into the line."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if type(message) is dict else None


def signal_name(number: int) -> str:
    """The name of a signal, or its number where it has none (those between two real-time ones)."""
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def _exit_status(pid: int, patience: float = 0.5) -> int | None:
    """The wait status of a child that has ended or is about to; None where it goes on."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        # Without WNOWAIT the process would be gone, and its group could not be killed any more.
        seen = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if seen is not None:
            return -seen.si_status if seen.si_code != os.CLD_EXITED else seen.si_status
        time.sleep(0.002)
    return None


def _end(pid: int) -> None:
    """Kill the child's whole session and wait for the child."""
    for kill, target in ((os.killpg, pid), (os.kill, pid)):
        try:
            kill(target, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS refuses for a group of zombies
            pass
    os.waitpid(pid, 0)


def _report(messages: list[dict], closed: bool, status: int | None) -> ChildReport:
    if messages and "ending" in messages[-1]:
        return ChildReport(messages[:-1], messages[-1]["ending"])
    if not closed:
        return ChildReport(messages, "timeout")
    if status is None or status == CLOSED_FILES:
        return ChildReport(messages, "files")
    if status < 0:
        return ChildReport(messages, "died", f"signal {signal_name(-status)}")
    return ChildReport(messages, "died", f"exit code {status}")


class BoundedText:
    """A text stream that keeps its first characters and forgets the rest."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text[: LONGEST_OUTPUT - len(self.text)]
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


class OutOfTime(BaseException):
    """The timer of a check inside the kernel; no `except Exception` of learner code stops it."""


def run_here(work: Callable, *, seconds: float) -> ChildReport:
    """`work(send)` in this process, under a timer where there is one: the way without a fork."""
    report = ChildReport()
    before, numbers, state = settings(), random.getstate(), torch.random.get_rng_state()
    try:
        with _timer(seconds), redirect_stdout(BoundedText()), redirect_stderr(BoundedText()):
            work(report.messages.append)
        report.ending = "finished"
    except OutOfTime:
        report.ending = "timeout"
    except MemoryError:
        report.ending = "memory"
    except BaseException as error:  # SystemExit of learner code must not end the kernel
        report.detail = type(error).__name__
    finally:
        restore_settings(before)
        random.setstate(numbers)
        torch.random.set_rng_state(state)
    return report


@contextmanager
def _timer(seconds: float):
    """Raise OutOfTime after `seconds`, in the main thread of a system with SIGALRM."""
    main = threading.current_thread() is threading.main_thread()
    if not hasattr(signal, "SIGALRM") or not main:
        yield
        return

    def ring(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class InputAsked(Exception):
    """Code under a check asked for input."""


def _no_input(*_args) -> str:
    raise InputAsked("a checked function must not ask for input")


def isolate(memory_mb: int) -> None:
    """Cut this (child) process off: own session, no terminal, one torch thread, bounded memory."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.stdout = sys.stderr = BoundedText()
    builtins.input = _no_input
    faulthandler.disable()  # else a crash is told at length in the notebook
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)  # with two, the first threaded operation after a fork hangs
    _limit_memory(memory_mb)


def _limit_memory(memory_mb: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: RLIMIT_AS cannot be set there with any use
        return
    limit = held + memory_mb * 2**20
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))

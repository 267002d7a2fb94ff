"""Run code in a forked child of this process, with limits, and read its messages back.

The child sees every object of the parent (no pickling of a learner's closure) and can hurt
none: an endless loop, `os._exit`, a huge tensor or a changed random state end with the child.
"""

import builtins
import faulthandler
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

LONGEST_OUTPUT = 2_000


@dataclass
class ChildReport:
    """What a child sent, and how it ended: "finished", "timeout", "memory" or "died"."""

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
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_the_child(work, write_end, memory_mb)
    os.close(write_end)
    try:
        data, in_time = _read_until(read_end, time.monotonic() + seconds)
    finally:
        os.close(read_end)
        status = _end(pid)
    return _report(data, in_time, status)


def _be_the_child(work: Callable, write_end: int, memory_mb: int) -> None:
    def send(message: dict) -> None:
        data = (json.dumps(message) + "\n").encode()
        while data:
            data = data[os.write(write_end, data) :]

    try:
        isolate(memory_mb)
        work(send)
        send({"ending": "finished"})
    except MemoryError:
        send({"ending": "memory"})
    finally:
        os._exit(0)  # never back into the kernel's event loop, never its exit handlers


def _read_until(read_end: int, deadline: float) -> tuple[bytes, bool]:
    chunks = []
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([read_end], [], [], left)[0]:
            break
        chunk = os.read(read_end, 65_536)
        if not chunk:
            return b"".join(chunks), True
        chunks.append(chunk)
        if b'{"ending":' in chunk:  # a process the child left behind may hold the pipe open
            return b"".join(chunks), True
    return b"".join(chunks), False


def _end(pid: int) -> int:
    """Kill the child's whole session and return its wait status."""
    for kill, target in ((os.killpg, pid), (os.kill, pid)):
        try:
            kill(target, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return os.waitpid(pid, 0)[1]


def _report(data: bytes, in_time: bool, status: int) -> ChildReport:
    messages = [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    if messages and "ending" in messages[-1]:
        return ChildReport(messages[:-1], messages[-1]["ending"])
    if not in_time:
        return ChildReport(messages, "timeout")
    if os.WIFSIGNALED(status):
        return ChildReport(messages, "died", f"signal {signal.Signals(os.WTERMSIG(status)).name}")
    return ChildReport(messages, "died", f"exit code {os.waitstatus_to_exitcode(status)}")


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

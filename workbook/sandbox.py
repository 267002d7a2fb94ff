"""Run code that nobody has read in a confined child, and clear away all that it leaves.

A supervisor process (the course's own code) is forked for each job. It prepares the job, forks
the confined process, waits no longer than the limit, kills everything that is left, and reports
how it ended. Messages carry a token that the confined code is not told.
"""

import gc
import itertools
import json
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from workbook import room
from workbook.child import BoundedText
from workbook.process import MEGABYTE

MOST_SAID = 2 * MEGABYTE  # what a job may send before it counts as a flood
GRACE = 10.0  # seconds after which a supervisor that does not answer is killed itself


@dataclass(frozen=True)
class Limits:
    """What one job may use: seconds of time, MB of memory a process, processes, MB of files."""

    seconds: float
    cpu_seconds: int = 30  # of each process
    memory_mb: int = 2048  # of each process, beyond what it starts with
    processes: int = 12  # an honest one has three
    file_mb: int = 16
    disk_mb: int = 64


@dataclass
class Job:
    """A confined child: its messages so far, and how it ended ("" while it runs)."""

    pid: int
    descriptor: int
    token: str
    deadline: float
    place: Path  # an empty folder: the room's mount point, or the home where there is no room
    data: bytearray = field(default_factory=bytearray)
    messages: list[dict] = field(default_factory=list)
    ending: str = ""  # "finished", "refused", "timeout", "died" or "flood"
    detail: str = ""
    forged: bool = False
    started: float = field(default_factory=time.monotonic)

    def fileno(self) -> int:
        """For select."""
        return self.descriptor


class Refused(ValueError):
    """A job that cannot be prepared; one sentence."""


def what_is_missing(shown: list[Path]) -> list[str]:
    """Which promises this system cannot keep: one sentence each, none with a room of its own.

    Raises: Refused when the room's account cannot read the course, and for root without a room:
    an ordinary account can lose its own files at most.
    """

    def look(_, send):
        for path in shown:
            if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
                send({"unreadable": str(path)})

    job = launch(lambda: None, look, Limits(seconds=20), shown)
    finish([job])
    if job.ending == "finished":
        for message in job.messages:
            path = message["unreadable"]
            raise Refused(f"Grading as root needs {path} to be readable: chmod -R a+rX {path}")
        return []
    if os.geteuid() == 0:
        raise Refused(f"Root does not run submissions without a room of their own ({job.detail}).")
    missing = [
        f"files and network: submissions have the access of this account ({job.detail})",
        "left-over processes are ended by search, not by the kernel",
    ]
    if not sys.platform.startswith("linux"):
        missing.append("memory, and left-over processes that start a session of their own")
    return missing


def launch(prepare: Callable, work: Callable, limits: Limits, shown: list[Path] | None) -> Job:
    """Start `work(prepare(), send)` in a confined child; `send(dict)` hands a message over.

    `prepare` is the course's own code and may read files; its Refused ends the job. `shown` is
    what the room shows; None runs without a room.
    """
    read_end, write_end = os.pipe()
    token = secrets.token_hex(16)
    place = Path(tempfile.mkdtemp(prefix="workbook-grade-"))
    grader = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            _supervisor(grader)
            send = _sender(write_end, token)
            _supervise(prepare, work, limits, shown, place, send, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    return Job(pid, read_end, token, time.monotonic() + limits.seconds + GRACE, place)


def _sender(write_end: int, token: str) -> Callable[[dict], None]:
    def send(message: dict) -> None:
        data = f"{token} {json.dumps(message)}\n".encode()
        while data:
            data = data[os.write(write_end, data) :]

    return send


def _supervisor(grader: int) -> None:
    """Become a supervisor: it clears up when the grader says so, or is gone (Linux)."""

    def clear_up(*_):
        raise TimeoutError("stopped")

    os.setsid()
    signal.signal(signal.SIGTERM, clear_up)
    _try(room.prctl, room.DIE_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != grader:
        os._exit(1)


def _supervise(prepare, work, limits: Limits, shown, place: Path, send, write_end: int) -> None:
    try:
        task = prepare()
    except ValueError as error:  # Refused, or a file of the course that is not as it should be
        send({"ending": "refused", "detail": str(error)})
        return
    try:
        if shown is None:
            _try(room.prctl, room.SUBREAPER, 1)  # what loses its parent becomes ours to end
        else:
            room.leave_namespaces()
    except OSError as error:
        send({"ending": "died", "detail": error.strerror})
        return
    pid = os.fork()
    if pid == 0:
        _first_process(work, task, limits, shown, place, send, write_end)
    try:
        report = _wait(pid, limits)
    except TimeoutError:
        report = ("died", "stopped")
    _end_all(pid)
    shutil.rmtree(place, ignore_errors=True)  # the grader may be gone
    send({"ending": report[0], "detail": report[1]})


def _try(function: Callable, *arguments) -> None:
    try:
        function(*arguments)
    except OSError:
        pass


def _first_process(work, task, limits, shown, place: Path, send, write_end: int) -> None:
    """Become process 1 of the room and run the work in process 2; its end is our end.

    Process 1 holds no code of the submission, so nothing in the room can keep it from ending.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _try(Path("/proc/self/oom_score_adj").write_text, "1000")  # short of memory: this one first
    try:
        if shown is not None:
            room.enter(shown, place, limits.disk_mb)
            _try(room.prctl, room.DIE_WITH_PARENT, signal.SIGKILL)
            pid = os.fork()
            if pid:
                os.close(write_end)
                _mirror(pid)
        else:
            os.chdir(place)
        _confine(limits, write_end)
        work(task, send)
        os._exit(0)
    except Exception as error:
        send({"remarks": [f"the grader stopped: {type(error).__name__}: {error}"]})
    finally:
        os._exit(70)


def _mirror(pid: int) -> None:
    """Wait for a child, reaping what else ends here, and end as it did."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else status >> 8)


def _confine(limits: Limits, write_end: int) -> None:
    """Own session, no terminal, no open files, a bare environment, and the limits."""
    import resource

    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, write_end)
    os.closerange(write_end + 1, 4096)
    sys.stdout = sys.stderr = BoundedText()
    held = _memory_held()
    most = resource.RLIM_INFINITY if held is None else held + limits.memory_mb * MEGABYTE
    file_size, cpu = limits.file_mb * MEGABYTE, limits.cpu_seconds
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_AS, most, most if held is None else 2 * most),  # a check sets its own
        (resource.RLIMIT_FSIZE, file_size, file_size),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_NPROC, *[_tasks_of_account() + 2 * limits.processes] * 2),
        (resource.RLIMIT_NOFILE, 256, 256),
    ):
        resource.setrlimit(kind, (soft, hard))
    os.environ.update({"HOME": os.getcwd(), "TMPDIR": os.path.dirname(os.getcwd())})
    gc.freeze()  # what is here stays; collecting it would only copy pages


def _memory_held() -> int | None:
    """Bytes of address space that this process has; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tasks_of_account() -> int:
    """Tasks that this account has, here and (where a namespace shares the count) outside."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/task"):
        try:
            if path.stat().st_uid == os.getuid():
                count += len(os.listdir(path))
        except OSError:
            continue
    return count


def _wait(pid: int, limits: Limits) -> tuple[str, str]:
    """How a process ended; or that it did not in time, or became too many."""
    deadline = time.monotonic() + limits.seconds
    for turn in itertools.count():
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return _ending(os.waitstatus_to_exitcode(status))
        if time.monotonic() > deadline:
            return "timeout", f"{limits.seconds:g} s"
        # Its neighbours share the cores: many busy processes would cost them their time limits.
        if turn % 20 == 19 and len(_descendants(os.getpid())) > limits.processes:
            return "died", f"more than {limits.processes} processes at once"
        time.sleep(0.01)


def _ending(code: int) -> tuple[str, str]:
    """An exit code, negative or above 128 for a signal, in words."""
    if code == 0:
        return "finished", ""
    number = -code if code < 0 else code - 128
    if number > 0:
        return "died", f"signal {signal.Signals(number).name}"
    return "died", f"exit code {code}"


def _end_all(pid: int) -> None:
    """End every process below this one; with the first process of a room its others end, too."""
    for _ in range(500):
        for target in _descendants(os.getpid()) or [pid]:  # without /proc its group must do
            for kill in (os.killpg, os.kill):
                _try(kill, target, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return


def _descendants(pid: int) -> list[int]:
    """All processes below one, read from /proc; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _has_ended(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    return False


def finish(jobs: list[Job]) -> list[Job]:
    """Read from the jobs until at least one has ended; return those that have."""
    ended: list[Job] = []
    while jobs and not ended:
        left = min(job.deadline for job in jobs) - time.monotonic()
        readable, _, _ = select.select(jobs, [], [], max(0.0, min(left, 1.0)))
        for job in readable:
            chunk = os.read(job.descriptor, 65_536)
            job.data += chunk
            if not chunk:
                _close(job, "died", "the supervisor ended")
            elif len(job.data) > MOST_SAID:
                _close(job, "flood", "it sent more than a grader can have said")
        for job in jobs:
            if not job.ending and time.monotonic() > job.deadline:
                _close(job, "timeout", "the supervisor did not answer")
        ended = [job for job in jobs if job.ending]
    return ended


def stop(jobs: list[Job]) -> None:
    """End jobs at once."""
    for job in jobs:
        _close(job, "died", "stopped")


def _close(job: Job, ending: str, detail: str) -> None:
    """End a job's supervisor, whose room ends with it, and sort what was said."""
    os.close(job.descriptor)
    for number in (signal.SIGTERM, signal.SIGKILL):
        _try(os.kill, job.pid, number)
        if _has_ended(job.pid, GRACE):
            break
    shutil.rmtree(job.place, ignore_errors=True)
    said = bytes(job.data[:MOST_SAID])
    for line in said.splitlines():
        token, _, text = line.partition(b" ")
        if token.decode("ascii", "replace") == job.token:
            job.messages.append(json.loads(text))
        else:
            job.forged = True
    if job.messages and "ending" in job.messages[-1] and ending == "died":
        last = job.messages.pop()
        ending, detail = last["ending"], last["detail"]
    job.ending, job.detail = ending, detail

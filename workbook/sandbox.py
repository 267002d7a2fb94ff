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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from workbook import room
from workbook.child import BoundedText, read_message, signal_name
from workbook.pristine import beyond_reach
from workbook.process import MEGABYTE

MOST_SAID = 2 * MEGABYTE  # what a job may send before it counts as a flood
LONGEST_DETAIL = 300
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
    what the room shows; None runs without a room. What `work` returns, if anything, is called with
    a `send` in a fork of its process, where no thread of it goes on.
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
            _supervise(prepare, work, limits, shown, place, (write_end, token))
        finally:
            os._exit(1)
    os.close(write_end)
    return Job(pid, read_end, token, time.monotonic() + limits.seconds + GRACE, place)


def _sender(
    write_end: int, token: str, getpid=os.getpid, leave=os._exit, write=os.write, dumps=json.dumps
) -> Callable[[dict], None]:
    """What hands messages over for this process; a fork of it that comes back with one ends."""
    process = getpid()

    def send(message: dict) -> None:
        if getpid() != process:
            leave(0)
        data = f"{token} {dumps(message)}\n".encode()
        while data:
            data = data[write(write_end, data) :]

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


def _supervise(prepare, work, limits: Limits, shown, place: Path, pipe: tuple) -> None:
    send = _sender(*pipe)
    try:
        with _bounded_memory(limits.memory_mb):
            task = prepare()
    except Exception as error:  # whatever a file holds, its row says why it has no score
        known = isinstance(error, ValueError)  # Refused, or a file of the course
        says = str(error) if known else f"it cannot be read ({type(error).__name__})"
        send({"ending": "refused", "detail": says[:LONGEST_DETAIL]})
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
        _first_process(work, task, limits, shown, place, pipe)
    try:
        report = _wait(pid, limits)
    except TimeoutError:
        report = ("died", "stopped")
    _end_all(pid)
    _remove(place)  # the grader may be gone
    send({"ending": report[0], "detail": report[1]})


@contextmanager
def _bounded_memory(memory_mb: int):
    """A limit on the memory that this process takes beyond what it has, where there can be one."""
    import resource

    held, before = _memory_held(), resource.getrlimit(resource.RLIMIT_AS)
    if held is not None:
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_mb * MEGABYTE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _remove(place: Path) -> None:
    """Remove a folder as far as that goes: without a room, learner code may have nested it."""
    with suppress(OSError, RecursionError):
        shutil.rmtree(place, ignore_errors=True)


def _try(function: Callable, *arguments) -> None:
    try:
        function(*arguments)
    except OSError:
        pass


def _first_process(work, task, limits, shown, place: Path, pipe: tuple) -> None:
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
                os.close(pipe[0])
                _mirror(pid)
        else:
            os.chdir(place)
        _confine(limits, pipe[0])
        _work(work, task, pipe)
        os._exit(0)
    finally:
        os._exit(70)


def _work(work: Callable, task, pipe: tuple) -> None:
    """Do the work, and what it leaves to be done, in a fork: there no thread of it goes on."""
    # Learner code runs in `work`: what is used behind it is bound before it.
    fork, mirror, sender = os.fork, beyond_reach(_mirror), beyond_reach(_sender)
    send = sender(*pipe)
    try:
        judge = work(task, send)
        if judge is None:
            return
        send({})  # ends a fork of learner code that has come back
        pid = fork()
        if pid:
            mirror(pid)
        send = sender(*pipe)
        judge(send)
    except Exception as error:
        send({"remarks": [f"the grader stopped: {type(error).__name__}: {error}"[:LONGEST_DETAIL]]})
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
    if code < 0 or number in signal.valid_signals():
        return "died", f"signal {signal_name(number)}"
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
            # Bytes: a process may call itself anything, and any process of the machine is read.
            parent = int(path.read_bytes().rpartition(b")")[2].split()[1])
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
    _remove(job.place)
    said = bytes(job.data[:MOST_SAID])
    for line in said.split(b"\n"):
        token, _, text = line.partition(b" ")
        message = read_message(text) if token == job.token.encode() else None
        if message is not None:
            job.messages.append(message)
        elif line:
            job.forged = True
    job.ending, job.detail = ending, detail
    last = job.messages[-1] if job.messages else {}
    if ending == "died" and last.keys() == {"ending", "detail"}:
        job.messages.pop()
        job.ending, job.detail = str(last["ending"]), str(last["detail"])

"""A bare room for code that nobody has read (Linux): its own files, processes, network, account.

The room shows the files and folders it is given, read-only, a small /tmp that is gone with the
room, and nothing else: no home, no other submission, no device but null, zero, full and random.
Its network has no interface. When its first process ends, the kernel ends all others in it.

Made from namespaces (man 7 namespaces); as root without, otherwise with a user namespace of its
own. Where a system forbids that, `enter` raises OSError and the caller has to do without.
"""

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

from workbook.process import MEGABYTE

NEW_ROOM = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # NS PID NET IPC UTS
NEW_USER = 0x10000000
READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT = 1, 2, 4, 32
BIND, MOVE, RECURSIVE, PRIVATE = 4096, 8192, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # one number on all processors
DIE_WITH_PARENT, DUMPABLE, DROP_CAPABILITY, SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 24, 36, 38
DEVICES = ("null", "zero", "full", "random", "urandom")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
FIRST_ACCOUNT = 60_000  # inside the 65,536 accounts that a container usually has
HOME = "/tmp/home"
# Calls that a room refuses, by processor: the number of its call table, that of clone3 and clone,
# and those that take memory which no limit counts (memfd, SysV), or open a room in the room.
CALLS = {
    "x86_64": (0xC000003E, 435, 56, (319, 447, 29, 68, 272, 308, 165, 430, 425, 248)),
    "aarch64": (0xC00000B7, 435, 220, (279, 447, 194, 186, 97, 268, 40, 430, 425, 217)),
}
SECCOMP, FILTER, ALLOW, KILL, ERROR = 22, 2, 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06  # steps of its language


def prctl(option: int, value: int = 0) -> None:
    """Set one attribute of this process (man 2 prctl)."""
    _call("prctl", option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3)


def _call(name: str, *arguments) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        result = getattr(libc, name)(*arguments)
    except AttributeError as error:  # not Linux
        raise OSError(f"{name} is not there") from error
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def leave_namespaces() -> None:
    """Give the next child of this process namespaces of its own.

    Raises: OSError where the system forbids it.
    """
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        _call("unshare", NEW_ROOM)
        return
    _call("unshare", NEW_ROOM | NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def enter(paths: list[Path], mount_point: Path, disk_mb: int) -> None:
    """Furnish the room at an empty folder, go in, and lock the door: no way back, no rights.

    Called by the first process of the new namespaces. Raises: OSError.
    """
    account = os.geteuid() or FIRST_ACCOUNT + _outer_number(mount_point) % 5_000
    new = str(mount_point)
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("tmpfs", new, "tmpfs", NO_SUID | NO_DEVICES, "size=1m,mode=755")
    for name in ("tmp", "dev", "proc"):
        os.mkdir(f"{new}/{name}")
    options = f"size={disk_mb * MEGABYTE},nr_inodes=20k,mode=1777"
    _mount("tmpfs", f"{new}/tmp", "tmpfs", NO_SUID | NO_DEVICES, options)
    os.mkdir(new + HOME)
    os.chown(new + HOME, account, account if os.geteuid() == 0 else -1)
    _show(new, paths)
    _lock(new, account)


def _outer_number(mount_point: Path) -> int:
    """A number that no other room has now: inside, every room's first process is process 1."""
    return os.stat(mount_point).st_ino


def _show(new: str, paths: list[Path]) -> None:
    """Bind the system's folders, what is to be shown and five devices into the new root."""
    shown: list[str] = []
    for path in SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), new + path)
        elif os.path.isdir(path):
            shown.append(path)
    given = {str(p.absolute()) for p in paths} | {os.path.realpath(p) for p in paths}
    for path in sorted(given, key=len):
        if not any(path == seen or path.startswith(seen + "/") for seen in shown):
            shown.append(path)
    for path in shown:
        if os.path.isdir(path):
            os.makedirs(new + path, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(new + path), exist_ok=True)
            Path(new + path).touch()
        _mount(path, new + path, None, BIND | RECURSIVE)
        _make_read_only(new + path)
    for name in DEVICES:
        Path(f"{new}/dev/{name}").touch()
        _mount(f"/dev/{name}", f"{new}/dev/{name}", None, BIND)
    try:  # a container that hides parts of /proc forbids a fresh one: the room does without
        _mount("proc", f"{new}/proc", "proc", NO_SUID | NO_DEVICES | READ_ONLY)
    except PermissionError:
        pass


def _lock(new: str, account: int) -> None:
    """Make the new root read-only and ours, and give up every right."""
    os.symlink("../tmp", f"{new}/dev/shm")
    _mount(None, new, None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES)
    os.chdir(new)
    _mount(".", "/", None, MOVE)
    os.chroot(".")
    os.chdir(HOME)
    for capability in range(64):
        try:
            prctl(DROP_CAPABILITY, capability)
        except OSError:  # past the last one that this kernel knows
            break
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(account, account, account)
        os.setresuid(account, account, account)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())
    prctl(NO_NEW_PRIVILEGES, 1)
    _refuse_calls()
    prctl(DUMPABLE, 0)


def _refuse_calls() -> None:
    """Answer some calls of this process and all below it with an error (man 2 seccomp)."""
    if platform.machine() not in CALLS:
        return
    table, clone3, clone, refused = CALLS[platform.machine()]
    no, not_there = ERROR | errno.EPERM, ERROR | errno.ENOSYS  # the second: glibc then takes clone
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, table), (ANSWER, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for test, number, answer in [
        (AT_LEAST, 0x40000000, no),  # the second table of an x86 processor
        (EQUAL, clone3, not_there),
        *[(EQUAL, number, no) for number in refused],
    ]:
        steps += [(test, 0, 1, number), (ANSWER, 0, 0, answer)]
    steps += [(EQUAL, 0, 3, clone), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, NEW_USER)]
    steps += [(ANSWER, 0, 0, no), (ANSWER, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    rest = [ctypes.c_ulong(0)] * 2
    _call("prctl", SECCOMP, ctypes.c_ulong(FILTER), ctypes.byref(program), *rest)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options="") -> None:
    texts = [text and text.encode() for text in (source, target, kind)]
    _call("mount", *texts, ctypes.c_ulong(flags), options.encode() or None)


def _make_read_only(path: str) -> None:
    """A mount and all below it; mount_setattr keeps the flags that a user may not take off."""
    wanted = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SUID | NO_DEVICES, 0, 0, 0)
    number, size = ctypes.c_long(SYS_MOUNT_SETATTR), ctypes.c_size_t(ctypes.sizeof(wanted))
    _call("syscall", number, AT_FDCWD, path.encode(), AT_RECURSIVE, wanted, size)

"""What a hostile model tries. ``attack`` is called with the name of an attack and its parameters,
and returns what came of it, so that a test can say what must not have worked.
"""

import ctypes
import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
PTRACE_ATTACH, SYS_BPF = 16, {"x86_64": 321, "aarch64": 280}
libc = ctypes.CDLL(None, use_errno=True)


def attack(value):
    """``{"attack": name, ...parameters}``; the outcome is JSON, its form depends on the attack."""
    parameters = dict(value)
    return ATTACKS[parameters.pop("attack")](**parameters)


def connect(targets, timeout_s=1.0):
    """``host:port`` of each to "connected" or the error's name."""
    return {target: _tried(lambda target=target: _connect(target, timeout_s)) for target in targets}


def _connect(target, timeout_s):
    host, _, port = target.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    return "connected"


def resolve(names):
    """Each name to its address or the error's name."""
    return {name: _tried(lambda name=name: socket.gethostbyname(name)) for name in names}


def write(paths):
    """Each path to "written" or the error's name."""
    return {path: _tried(lambda path=path: _write(path)) for path in paths}


def _write(path):
    Path(path).write_text("hostile")
    return "written"


def read(paths, limit=200):
    """Each path to its first bytes as text, or the error's name."""

    def start_of(path):
        with Path(path).open("rb") as file:
            return file.read(limit).decode(errors="replace")

    return {path: _tried(lambda path=path: start_of(path)) for path in paths}


def listing(path):
    """Names in a folder, or the error's name."""
    return _tried(lambda: names_in(path))


def names_in(path):
    return sorted(entry.name for entry in Path(path).iterdir())


def fork_bomb(limit=100_000):
    """Processes that could be started before the first refusal, and the refusal."""
    children = []
    try:
        while len(children) < limit:
            child = os.fork()
            if child == 0:
                time.sleep(600)
                os._exit(0)
            children.append(child)
    except OSError as error:
        return {"started": len(children), "refused": type(error).__name__}
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)
    return {"started": len(children), "refused": None}


def endless_fork_bomb():
    """Children that fork too; never returns."""
    while True:
        try:
            os.fork()
        except OSError:
            pass


def eat_memory(mib=None):
    """Allocate and touch memory, without end unless ``mib`` says how much."""
    eaten = []
    while mib is None or len(eaten) < mib:
        eaten.append(bytearray(b"x" * 2**20))
    return len(eaten)


def eat_memory_in_child(mib=None):
    """The exit status of a child that does."""
    code = f"from model import eat_memory; eat_memory({mib})"
    child = [sys.executable, "-c", code]
    return subprocess.run(child, cwd=Path(__file__).parent, check=False).returncode


def print_forever(mib=None):
    """Fill the container's log, without end unless ``mib`` says how much."""
    line, written = b"hostile " * 127 + b"hostile\n", 0
    while mib is None or written < mib * 2**20:
        written += os.write(1, line)
    return written


def fill(path="/tmp/filled", limit_mib=4096):
    """MiB written before the refusal, and the refusal."""
    block, written = b"\0" * 2**20, 0
    try:
        with Path(path).open("wb", buffering=0) as file:
            while written < limit_mib * 2**20:
                written += file.write(block)
    except OSError as error:
        return {"mib": written // 2**20, "refused": error.strerror}
    finally:
        Path(path).unlink(missing_ok=True)
    return {"mib": written // 2**20, "refused": None}


def spin(seconds=1.0, threads=4):
    """CPU seconds used by so many busy processes in so many seconds."""
    code = f"import time; e = time.monotonic() + {seconds}\nwhile time.monotonic() < e: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(threads)]
    for each in busy:
        each.wait()
    spent = os.times()
    return spent.children_user + spent.children_system


def open_files(limit=100_000):
    """File descriptors that could be opened."""
    handles = []
    try:
        while len(handles) < limit:
            handles.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    finally:
        for handle in handles:
            os.close(handle)
    return len(handles)


def processes():
    """Process ids that are seen, each to the environment read from it or the error's name."""
    pids = [name for name in names_in("/proc") if name.isdigit()]
    return read([f"/proc/{pid}/environ" for pid in pids], 100_000)


def kernel():
    """Calls that only the privileged may make, each to "done" or the error's name."""
    scratch = b"/tmp"
    calls = {
        "mount": lambda: libc.mount(b"none", scratch, b"tmpfs", 0, None),
        "unshare user": lambda: libc.unshare(CLONE_NEWUSER),
        "unshare mount": lambda: libc.unshare(CLONE_NEWNS),
        "setuid": lambda: libc.setuid(0),
        "setgid": lambda: libc.setgid(0),
        "chroot": lambda: libc.chroot(scratch),
        "sethostname": lambda: libc.sethostname(b"mine", 4),
        "reboot": lambda: libc.reboot(0x89ABCDEF),
        "settimeofday": lambda: libc.settimeofday(ctypes.byref((ctypes.c_long * 2)(0, 0)), None),
        "bpf": lambda: libc.syscall(SYS_BPF[os.uname().machine], 0, None, 0),
        "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
        "mknod": lambda: os.mknod("/tmp/sda", 0o060666, os.makedev(8, 0)),
    }
    return {name: _in_child(call) for name, call in calls.items()}


def stop_init():
    """Stop the container's first process, which then neither reaps nor ends; the outcome.

    Processes of one user may trace each other, so this needs no right.
    """
    return _in_child(lambda: libc.ptrace(PTRACE_ATTACH, 1, 0, 0))


def _in_child(call):
    """Tried in a process of its own: one success must not help the next."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, str(_tried(lambda: _checked(call))).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as told:
        outcome = told.read().decode()
    os.waitpid(child, 0)
    return outcome or "killed"


def _checked(call):
    if call() == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return "done"


def identity():
    """User, group, groups, and what /proc/self/status says of rights."""
    lines = Path("/proc/self/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    kept = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    return {"uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(),
            **{key: status.get(key, "").strip() for key in kept}}  # fmt: skip


def devices():
    """Names in /dev, and the outcome of reading from each block device and memory."""
    risky = [name for name in names_in("/dev") if name.startswith(("sd", "vd", "nvme", "mem", "k"))]
    return {"names": names_in("/dev"), "read": read([f"/dev/{n}" for n in risky], 1)}


def _tried(action):
    """Its result, or the name of the error: for the system's errors, as in ``EPERM``."""
    try:
        return action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


ATTACKS = {
    function.__name__: function
    for function in (
        connect, resolve, write, read, listing, fork_bomb, endless_fork_bomb, eat_memory,
        eat_memory_in_child, print_forever, fill, spin, open_files, processes, kernel, identity,
        stop_init, devices,
    )
}  # fmt: skip


if __name__ == "__main__":
    import json

    print(json.dumps(attack(json.loads(sys.argv[1]))))

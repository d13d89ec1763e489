"""What Linux offers so that no process is left behind.

Three things together: a child learns of its parent's death (``PR_SET_PDEATHSIG``), orphans come to
us instead of to init (``PR_SET_CHILD_SUBREAPER``), and a guard, the process that was started, runs
the program in a child and cleans up after it, however that child ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType

_SET_PDEATHSIG = 1
_SET_CHILD_SUBREAPER = 36
# Run by a bare interpreter: ask for SIGTERM when the parent dies, then become the program.
_LAUNCH = (
    "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,15);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);os.execv(sys.argv[2],sys.argv[2:])"
)


def stop_signals() -> list[signal.Signals]:
    """The signals that mean: stop. SIGHUP only where it is not ignored (``nohup`` ignores it)."""
    hangup = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def launched(argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` (an absolute path first) so that it gets SIGTERM when
    this process dies. Start it from the main thread: the kernel watches the thread that forked."""
    return [sys.executable, "-ISc", _LAUNCH, str(os.getpid()), *argv]


def adopt_orphans() -> None:
    """From now on, processes whose parents die become children of this one."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def children(of: int) -> set[int]:
    """Process ids of the direct children of a process, zombies included."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name that may hold spaces and brackets) state ppid ...
                parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
                if int(parent) == of:
                    found.add(int(entry.name))
    return found


def end(pids: Iterable[int], signum: signal.Signals) -> None:
    """Send a signal; processes that are gone already are fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def reap(pids: Iterable[int]) -> None:
    """Take the exit status of children that ended, so that they do not stay as zombies."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def end_all(find: Callable[[], set[int]], grace_s: float) -> None:
    """SIGTERM, and after ``grace_s`` seconds SIGKILL, until ``find`` (children of ours) is empty.

    Processes that turn up meanwhile, because their parents ended, are treated the same. Returns
    at the latest five seconds after the grace: only the kernel can hold a killed process longer.
    """
    deadline = time.monotonic() + grace_s
    told: set[tuple[int, signal.Signals]] = set()
    while (left := find()) and time.monotonic() < deadline + 5:
        signum = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        fresh = {pid for pid in left if (pid, signum) not in told}
        end(fresh, signum)
        told |= {(pid, signum) for pid in fresh}
        reap(left)
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)


def guard(grace_s: float) -> None:
    """Fork; returns in the child, which does the work. The parent waits for it, hands signals on,
    and ends every process that the work left behind, even when it was killed; then exits with
    the child's status. When the parent is killed, the child is asked to stop (SIGTERM).

    Call it before any thread exists.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    adopt_orphans()
    worker = os.fork()
    if worker == 0:
        os.setsid()  # Ctrl-C reaches the guard, which hands it on, once
        _prctl(_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        return

    def forward(signum: int, _frame: FrameType | None) -> None:
        end([worker], signal.Signals(signum))

    for each in stop_signals():
        signal.signal(each, forward)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    end_all(lambda: children(parent), grace_s)
    raise SystemExit(status if status >= 0 else 128 - status)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)

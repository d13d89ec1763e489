"""A tiny process beside the agent that outlives it by a moment, to leave no orphans.

When an agent is killed (SIGKILL, out of memory), the kernel ends its direct children (they asked
for that with PR_SET_PDEATHSIG), but not *their* children, such as the workers of an inference
server. The guard knows the process groups of all replicas; when the pipe from the agent closes, it
kills those that are left.

    agent -> guard, one line each:   +<process group>    -<process group>

Run as a script with ``python -I -S``: standard library only, a few MiB.
"""

from __future__ import annotations

import os
import signal
import sys


class Guard:
    """The agent's side: starts the guard when first needed, again if it was killed."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._pipe: int | None = None
        self.pid: int | None = None

    def watch(self, group: int) -> None:
        """Have this process group killed when the agent ends in any way."""
        self._groups.add(group)
        if self._pipe is None:
            self._spawn()
        else:
            self._tell(self._pipe, f"+{group}\n")

    def forget(self, group: int) -> None:
        """This process group is gone; its number may be used again by others."""
        self._groups.discard(group)
        if self._pipe is not None:
            self._tell(self._pipe, f"-{group}\n")

    def close(self) -> None:
        """End the guard; it kills what it still watches."""
        if self._pipe is None or self.pid is None:
            return
        os.close(self._pipe)
        os.waitpid(self.pid, 0)
        self._pipe = self.pid = None

    def _tell(self, pipe: int, line: str) -> None:
        try:
            os.write(pipe, line.encode())
        except BrokenPipeError:  # somebody killed it
            self.close()
            self._spawn()

    def _spawn(self) -> None:
        theirs, self._pipe = os.pipe()
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", __file__],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 0)]
                + [(os.POSIX_SPAWN_DUP2, nothing, stream) for stream in (1, 2)],
                setsid=True,  # a Ctrl-C in the agent's terminal is not for the guard
            )
        finally:
            os.close(theirs)
            os.close(nothing)
        os.write(self._pipe, "".join(f"+{group}\n" for group in self._groups).encode())


def main() -> None:
    """Read until the agent is gone, then kill what it left."""
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue  # gone already


if __name__ == "__main__":
    main()

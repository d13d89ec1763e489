"""A Docker engine of the tests' own: beside any other engine of the machine, gone without a trace.

It has its own folders, socket, bridge, subnet and control group, so that an engine already running
here is not touched and everything that this one started can be found again and ended. As in an
installed engine, containerd is a process apart: it and the containers outlive a killed dockerd.

What engines cannot help sharing are Docker's chains of filter rules: one that starts empties them.
Another engine's published ports and network isolation are whole again after its next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import docker
from docker.errors import DockerException

READY_S = 40.0  # a first start loads filter rules and makes folders; machines can be busy
STOP_S = 20.0
TAIL = 3_000
DRIVERS = ("overlay2", "vfs")  # vfs works everywhere, also where overlay on overlay does not
TOOLS = ("dockerd", "containerd", "runc", "iptables", "ip")
CGROUPS = Path("/sys/fs/cgroup")
DETACH = 2  # MNT_DETACH
UNTOUCHED = {  # tables that Docker writes to, as the kernel makes them
    table: "\n".join([f"*{table}", *(f":{chain} ACCEPT [0:0]" for chain in chains), "COMMIT\n"])
    for table, chains in {
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    }.items()
}
CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "{state}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{state}/containerd.sock"
"""
_numbers = count()
_libc = ctypes.CDLL(None, use_errno=True)


SOCKET_PATH = 100  # bytes; the kernel takes 107, and containerd appends to it


class EngineUnavailable(Exception):
    """No Docker engine can run here; the message says why."""


def why_not() -> str | None:
    """What an engine lacks on this machine; None: nothing that can be seen beforehand."""
    if os.geteuid() != 0:
        return "a Docker engine takes root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install docker.io iptables iproute2)"
    return None


class Engine:
    """One dockerd; ``url`` is what DOCKER_HOST should be.

    ``options`` go to dockerd, e.g. ``--live-restore``. ``client`` survives restarts.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.name = f"jft{os.getpid():x}-{next(_numbers)}"
        self.folder = folder
        self.data_root = folder / "data"
        self.exec_root = folder / "exec"
        self.socket = folder / "docker.sock"
        self.url = f"unix://{self.socket}"
        self.log = folder / "dockerd.log"
        self.gateway = ""  # the machine's address on the bridge
        self._options = options
        self._driver = DRIVERS[0]
        self._containerd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._client: docker.DockerClient | None = None
        self._rules_before = ""
        self._was_ready = False

    # -- running

    def start(self) -> None:
        """Return when it answers.

        Raises:
            EngineUnavailable: it cannot run here.
        """
        reason = why_not()
        if reason:
            raise EngineUnavailable(reason)
        if len(os.fsencode(self._containerd_socket)) > SOCKET_PATH:
            raise EngineUnavailable(f"{self.folder} is too long for the path of a socket")
        if not self.gateway:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._rules_before = run("iptables-save")
            self.gateway = self._make_bridge()
        try:
            self._start_on(self._driver)
        except EngineUnavailable:
            # Only a fresh engine may change drivers: one sees nothing of what another stored.
            if self._driver == DRIVERS[-1] or any(self.data_root.glob("image/*")):
                raise
            self.stop()
            self._driver = DRIVERS[-1]
            self._start_on(self._driver)

    @property
    def client(self) -> docker.DockerClient:
        """A client of this engine; it connects when first used."""
        if self._client is None:
            self._client = docker.DockerClient(self.url, version="auto", timeout=60)
        return self._client

    @property
    def pid(self) -> int:
        """Of dockerd."""
        assert self._process is not None, "the engine was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether dockerd lives; paused counts as living."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM: containers end too, unless it has ``--live-restore``."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL for dockerd alone; containerd and containers live on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop and start; data stays."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """dockerd accepts connections and answers nobody."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """The end of ``pause``."""
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def tail(self) -> str:
        """The last lines that dockerd logged."""
        return self.log.read_text(errors="replace")[-TAIL:] if self.log.exists() else ""

    def clear(self) -> None:
        """Remove all containers, images, volumes and networks of it; for use between tests."""
        for container in self.client.containers.list(all=True, ignore_removed=True):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
        self.client.networks.prune()
        self.client.volumes.prune()
        self.client.images.prune(filters={"dangling": False})

    # -- ending

    def close(self) -> None:
        """End it and all that it started; nothing stays running, mounted, routed or on disk."""
        with contextlib.suppress(DockerException, OSError, EngineUnavailable):
            if self._was_ready:  # a killed one knows best what networks it made
                self.resume() if self.running else self.start()
                self.clear()
        if self._client is not None:
            self._client.close()
        self.stop()
        self._end_processes()
        if self._containerd is not None:
            self._containerd.wait()
        for mounted in reversed(self._mounts()):
            _libc.umount2(os.fsencode(mounted), DETACH)
        if self.gateway:
            run("ip", "link", "delete", self._bridge, check=False)
            self._restore_rules()
        for group in reversed(self._groups()):
            with contextlib.suppress(OSError):
                group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def left_behind(self) -> list[str]:
        """What is still there of it: processes, mounts, control groups, links, rules."""
        rules = [
            line for line in run("iptables-save", check=False).splitlines() if self._ours(line)
        ]
        links = [line for line in run("ip", "-br", "link").splitlines() if self._ours(line)]
        found = (self._processes(), self._mounts(), self._groups(), links, rules)
        return [str(each) for kind in found for each in kind]

    # -- starting, inside

    @property
    def _bridge(self) -> str:
        return self.name[:15]

    def _make_bridge(self) -> str:
        """A bridge with a subnet that nobody here uses; its address."""
        taken = run("ip", "-4", "route") + run("ip", "-4", "-o", "address")
        subnet = next(n for n in range(256) if f"10.213.{n}." not in taken)
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "address", "add", f"10.213.{subnet}.1/24", "dev", self._bridge)
        run("ip", "link", "set", self._bridge, "up")
        return f"10.213.{subnet}.1"

    def _start_on(self, driver: str) -> None:
        arguments = [
            "dockerd", "--host", self.url, "--data-root", str(self.data_root),
            "--exec-root", str(self.exec_root), "--pidfile", str(self.folder / "dockerd.pid"),
            "--config-file", str(self.folder / "daemon.json"), "--bridge", self._bridge,
            "--storage-driver", driver,
            "--containerd", str(self._containerd_socket),
            "--cgroup-parent", f"/{self.name}",
            "--exec-opt", "native.cgroupdriver=cgroupfs", *self._options,
        ]  # fmt: skip
        (self.folder / "daemon.json").write_text("{}")  # not the machine's own settings
        if self._containerd is None:
            state = self.exec_root / "containerd"
            state.mkdir(parents=True)
            config = state / "config.toml"
            config.write_text(CONTAINERD.format(folder=self.folder, state=state))
            self._containerd = self._spawn("containerd", "--config", str(config))
        self._process = self._spawn(*arguments)
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if not self.running:
                raise EngineUnavailable(f"dockerd ended at its start; it said:\n{self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise EngineUnavailable(f"no answer within {READY_S:g} s; it said:\n{self.tail()}")
            time.sleep(0.05)
        self._was_ready = True

    @property
    def _containerd_socket(self) -> Path:
        return self.exec_root / "containerd/containerd.sock"

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            return subprocess.Popen(
                arguments, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def _answers(self) -> bool:
        """Asked without the SDK, which leaks a socket when it finds nobody."""
        asking = socket.socket(socket.AF_UNIX)
        asking.settimeout(5)
        with asking, contextlib.suppress(OSError):
            asking.connect(str(self.socket))
            asking.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in asking.recv(64)
        return False

    # -- ending, inside

    def _processes(self) -> Iterator[int]:
        """What runs in its control group, and its containerd and shims."""
        group, folder = f"/{self.name}/".encode(), os.fsencode(self.exec_root)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    inside = group in (entry / "cgroup").read_bytes()
                    if not inside and folder not in (entry / "cmdline").read_bytes():
                        continue
                    if b") Z " not in (entry / "stat").read_bytes():  # ended, and nobody asks
                        yield int(entry.name)

    def _end_processes(self) -> None:
        deadline = time.monotonic() + STOP_S
        while left := list(self._processes()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                return  # left_behind tells
            time.sleep(0.02)

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.folder}/")]

    def _groups(self) -> list[Path]:
        """Its control groups, each before those inside it."""
        tops = sorted(CGROUPS.glob(self.name)) + sorted(CGROUPS.glob(f"*/{self.name}"))
        return [group for top in tops for group in sorted(top.glob("**/"))]

    def _ours(self, rule: str) -> bool:
        return self._bridge in rule or self.gateway.rpartition(".")[0] + "." in rule

    def _restore_rules(self) -> None:
        """Remove its filter rules; if no engine was here before and none came, all of Docker's."""
        for table in UNTOUCHED:
            for rule in run("iptables", "-w", "-t", table, "-S", check=False).splitlines():
                if rule.startswith("-A ") and self._ours(rule):
                    words = shlex.split(rule)[1:]
                    run("iptables", "-w", "-t", table, "-D", *words, check=False)
        others = re.search(r"-A FORWARD -o \S+ -j DOCKER\n", run("iptables-save", check=False))
        if "DOCKER" not in self._rules_before and not others:
            empty = [text for table, text in UNTOUCHED.items()
                     if f"*{table}\n" not in self._rules_before]  # fmt: skip
            run("iptables-restore", given="".join([self._rules_before, *empty]), check=False)


def run(*command: str, given: str | None = None, check: bool = True) -> str:
    """Its output.

    Raises:
        EngineUnavailable: it failed; machines differ in what they let root do.
    """
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=30
    )
    if check and done.returncode:
        raise EngineUnavailable(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout

"""The demo: two real models through gateway, log, worker and back, and what SQL says about it.

    make demo             or: .venv/bin/python docs/examples/demo/demo.py [--keep]

1. `jetfleet up` on free ports and a data folder of its own; `jetfleet apply fleet.yaml`.
2. SmolLM2 answers a question over HTTP; its tokens are printed as they come.
3. Magika says of which type the files of this repository are, all at once.
4. A table from DuckDB: per job, how many, how long they waited and ran, how they ended. It must
   tell what was sent, or the demo fails.
5. Everything stops.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jetfleet import processes
from jetfleet.client import Client
from jetfleet.errors import JetfleetError
from jetfleet.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
QUESTION = "Explain in three short sentences why the sky is blue."
LARGEST_FILE = 512 * 1024
LEAST_FILES = 50
UP_WITHIN_S = 90
STOP_WITHIN_S = 60
CHAT_WITHIN_S = 120
COUNTS = ("completed", "failed", "cancelled", "expired")

console = Console(highlight=False)


class DemoFailed(Exception):
    """Something is not as it must be."""


@dataclass
class Installation:
    """A running `jetfleet up`: its process, what it said of itself, its log."""

    process: subprocess.Popen[str]
    endpoints: dict[str, Any]
    log: Path

    @property
    def settings(self) -> Settings:
        return Settings(
            nats_url=self.endpoints["nats_url"], data_dir=Path(self.endpoints["data_dir"])
        )


def step(text: str) -> None:
    console.print(f"\n[bold cyan]▸ {text}[/]")


@contextlib.contextmanager
def installation(folder: Path) -> Iterator[Installation]:
    """`jetfleet up` on free ports, stopped at the end as Ctrl-C would."""
    command = [sys.executable, "-m", "jetfleet", "--json", "up", "--data-dir", str(folder / "data")]
    for option in ("--http-port", "--nats-port", "--ws-port", "--monitor-port"):
        command += [option, "0"]
    log = folder / "up.log"
    with log.open("w") as out:
        # A session of its own: Ctrl-C reaches the demo, which then stops it in order.
        process = subprocess.Popen(
            processes.launched(command),  # and it stops when the demo is killed
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
            start_new_session=True,
        )
    try:
        yield Installation(process, wait_ready(process, log), log)
    finally:
        stop(process, log)


def wait_ready(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The line of JSON with which `jetfleet up` says that it is ready."""
    assert process.stdout is not None
    watchdog = threading.Timer(UP_WITHIN_S, process.terminate)
    watchdog.start()
    try:
        line = process.stdout.readline()
    finally:
        watchdog.cancel()
    if not line:
        raise DemoFailed(f"jetfleet up did not become ready; its log ends with\n{tail(log)}")
    endpoints: dict[str, Any] = json.loads(line)
    return endpoints


def stop(process: subprocess.Popen[str], log: Path) -> None:
    """SIGINT, as Ctrl-C sends; it must end well, and in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        status = process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise DemoFailed(f"jetfleet up did not stop in {STOP_WITHIN_S} s\n{tail(log)}") from None
    if status != 0:
        raise DemoFailed(f"jetfleet up ended with status {status}\n{tail(log)}")


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def apply(up: Installation) -> None:
    """The command line, as anybody would use it."""
    file = (HERE / "fleet.yaml").relative_to(ROOT)
    console.print(f"[dim]$ jetfleet apply {file}[/]")
    data_dir = ["--data-dir", up.endpoints["data_dir"]]
    command = [sys.executable, "-m", "jetfleet", "apply", str(file), *data_dir]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise DemoFailed("jetfleet apply failed")


def chat(up: Installation) -> None:
    """Ask over HTTP and print tokens as they come (server-sent events)."""
    url = f"{up.endpoints['http_url']}/v1/inference_jobs/chat/run_sync"
    body = {
        "input": {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 90,
            "temperature": 0,
        },
        "stream": True,
    }
    console.print(f"[dim]$ curl -N {url} --json {shlex.quote(json.dumps(body))}[/]", soft_wrap=True)
    console.print(f"[bold]{QUESTION}[/]")
    began = first = time.monotonic()
    tokens = 0
    for name, data in server_sent_events(url, body):
        if name == "chunk":
            first = time.monotonic() if tokens == 0 else first
            text = "".join(c["delta"].get("content") or "" for c in data["choices"])
            tokens += bool(text)
            console.print(text, end="", markup=False, soft_wrap=True)
        elif name != "outcome" or data["state"] != "completed":
            raise DemoFailed(f"the language model did not answer: {data}")
    if tokens < 3:
        raise DemoFailed(f"tokens did not stream: {tokens} came")
    rate = tokens / max(time.monotonic() - first, 1e-3)
    console.print(f"\n[dim]first token after {first - began:.2f} s, {rate:.0f} tokens/s[/]")


def server_sent_events(url: str, body: Any) -> Iterator[tuple[str, Any]]:
    """(event, data) of a streaming answer."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=CHAT_WITHIN_S)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        connection.request("POST", address.path, json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise DemoFailed(f"{url} answered {answer.status}: {answer.read().decode()}")
        name = ""
        for raw in answer:
            line = raw.decode().rstrip("\r\n")
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                yield name, json.loads(line.removeprefix("data:"))
                if name in ("outcome", "problem"):
                    return
        raise DemoFailed(f"{url}: the stream ended without an outcome")


def repository_files() -> list[Path]:
    """The files of this repository, as git knows them; else all that lie here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if not any(s.startswith(".") for s in p.parts)]
    files = [p for p in paths if p.is_file() and 0 < p.stat().st_size <= LARGEST_FILE]
    if len(files) < LEAST_FILES:
        raise DemoFailed(f"only {len(files)} files here; the demo needs {LEAST_FILES}")
    return files


async def identify(client: Client, files: list[Path]) -> None:
    """Send every file at once; print which types there are."""

    async def one(file: Path) -> str:
        content = base64.b64encode(file.read_bytes()).decode()
        output = await client.run("filetype", {"base64": content}, wait_s=60)
        progress.advance(task)
        return str(output["description"])

    began = time.monotonic()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("files", total=len(files))
        found = await asyncio.gather(*(one(file) for file in files))
    took = time.monotonic() - began
    kinds = Counter(found).most_common(6)
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds)
    rate = f"{len(files) / took:.0f}/s"
    console.print(f"{len(files)} files in {took:.2f} s ({rate}): {shown}, …", soft_wrap=True)
    python = [kind for file, kind in zip(files, found, strict=True) if is_python(file)]
    if sum("python" in kind.lower() for kind in python) < 0.8 * len(python):
        raise DemoFailed(f"Magika takes Python files for {Counter(python)}")


def is_python(file: Path) -> bool:
    return file.suffix == ".py" and file.stat().st_size > 1000


async def summary(client: Client, expected: dict[str, int]) -> None:
    """The table, checked against what was sent. The projection answers with all that is stored."""
    rows = (await client.query("summary")).dicts()
    completed = {row["job"]: row["completed"] for row in rows}
    table = Table(
        *("job", "sent", *COUNTS, "wait", "run"),
        title="jetfleet, from DuckDB (wait and run: p50/p95, seconds)",
        box=SIMPLE_HEAD,
        collapse_padding=True,
    )
    for row in rows:
        times = (f"{row[f'{k}_p50_s']:.2f}/{row[f'{k}_p95_s']:.2f}" for k in ("wait", "run"))
        table.add_row(row["job"], *(str(row[k]) for k in ("invocations", *COUNTS)), *times)
    console.print(table)
    if completed != expected:
        raise DemoFailed(f"sent {expected}, but the projection says completed {completed}")


async def work(up: Installation) -> None:
    step("Magika, 2 replicas: what are the files of this repository?")
    files = repository_files()
    async with await Client.connect(up.settings, name="demo") as client:
        await identify(client, files)
        step("what happened, in SQL")
        await summary(client, {"chat": 1, "filetype": len(files)})


def keep(up: Installation) -> None:
    """Leave it up until Ctrl-C."""
    url = up.endpoints["http_url"]
    console.print(f"\n[bold]It stays up[/] until Ctrl-C. Documentation: {url}/docs")
    console.print(f"its log: {up.log}   try, in another terminal:\n", soft_wrap=True)
    ask = json.dumps({"input": {"messages": [{"role": "user", "content": "Hello!"}]}})
    lines = (
        f"curl -s {url}/v1/inference_jobs",
        f"curl -s {url}/v1/inference_jobs/chat/run_sync --json {shlex.quote(ask)}",
        f"{sys.executable} -m jetfleet ps --data-dir {up.endpoints['data_dir']}",
    )
    for line in lines:
        console.print(f"  {line}", soft_wrap=True, markup=False)
    with contextlib.suppress(KeyboardInterrupt):
        up.process.wait()


def main() -> int:
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="jetfleet-demo-") as folder:
            step("jetfleet up")
            with installation(Path(folder)) as up:
                console.print(f"HTTP {up.endpoints['http_url']}   NATS {up.endpoints['nats_url']}")
                console.print(f"[dim]{up.endpoints['durability']}[/]", soft_wrap=True)
                apply(up)
                step("SmolLM2-135M, over HTTP, token by token")
                chat(up)
                asyncio.run(work(up))
                if "--keep" in sys.argv[1:]:
                    keep(up)
                step("stopping")
        console.print(f"all stopped; {time.monotonic() - began:.0f} s altogether")
    except (DemoFailed, JetfleetError) as error:
        console.print(f"\n[bold red]the demo failed:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())

"""A container registry of the tests' own, on a free port of loopback."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx

from conftest import free_ports
from containers.engine import TAIL

PROGRAM = "docker-registry"
READY_S = 20.0
CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{address}"}}
"""
PASSWORDS = "auth: {{htpasswd: {{realm: tests, path: {file}}}}}\n"
USER, PASSWORD = "ada", "secret"
HASHED = "$2b$04$LKZHbHMpmBT4gHbjsTUcnu449FuZtHAo2ZHsbMGPnYzpYUD1CTyzC"  # of it, by bcrypt


class RegistryUnavailable(Exception):
    """No registry can run here; the message says why."""


class Registry:
    """One ``docker-registry``; keeps its port, so names of images stay true over a restart.

    Nothing is cached in memory: what a test changes in ``data`` is what is served next. A
    ``private`` one wants ``USER`` and ``PASSWORD``.
    """

    def __init__(self, folder: Path, *, private: bool = False) -> None:
        self._passwords = folder / "passwords" if private else None
        self.data = folder / "data"
        self.log = folder / "registry.log"
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self._config = folder / "config.yml"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers.

        Raises:
            RegistryUnavailable: it is not installed, or ended.
        """
        if shutil.which(PROGRAM) is None:
            raise RegistryUnavailable(f"not installed: {PROGRAM} (apt-get install {PROGRAM})")
        self.data.mkdir(parents=True, exist_ok=True)
        config = CONFIG.format(data=self.data, address=self.address)
        if self._passwords is not None:
            self._passwords.write_text(f"{USER}:{HASHED}\n")
            config += PASSWORDS.format(file=self._passwords)
        self._config.write_text(config)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRY_")}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", str(self._config)],
                env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self.log.read_text(errors="replace")[-TAIL:]
                raise RegistryUnavailable(f"{PROGRAM} did not come up; it said:\n{tail}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Connections to it are refused from now on; data stays."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        """It accepts connections and answers nobody, in the middle of a layer too."""
        assert self._process is not None, "the registry does not run"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """The end of ``pause``."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and remove what it holds."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)

    # -- what it holds

    def blob(self, digest: str) -> Path:
        """Where the bytes of a layer, configuration or manifest lie."""
        kind, _, value = digest.partition(":")
        return self.data / "docker/registry/v2/blobs" / kind / value[:2] / value / "data"

    def remove(self, repository: str, digest: str) -> None:
        """Forget an image: asking for it is answered with 404."""
        self._http("DELETE", f"/v2/{repository}/manifests/{digest}")

    def upload(self, repository: str, digest: str, content: Path | bytes) -> None:
        """Store a blob, unless the registry has it."""
        if self._asked(f"/v2/{repository}/blobs/{digest}").status_code == 200:
            return
        place = self._http("POST", f"/v2/{repository}/blobs/uploads/").headers["location"]
        joint = "&" if "?" in place else "?"
        if isinstance(content, bytes):
            self._http("PUT", f"{place}{joint}digest={digest}", content=content)
            return
        with content.open("rb") as file:
            self._http("PUT", f"{place}{joint}digest={digest}", content=file)

    def tag(self, repository: str, tag: str, manifest: bytes, kind: str) -> str:
        """Store an image's manifest of this media type; its digest."""
        self._http(
            "PUT", f"/v2/{repository}/manifests/{tag}",
            content=manifest, headers={"content-type": kind},
        )  # fmt: skip
        return f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    # -- inside

    @property
    def _auth(self) -> tuple[str, str] | None:
        return (USER, PASSWORD) if self._passwords is not None else None

    def _url(self, path: str) -> str:
        return path if path.startswith("http") else f"http://{self.address}{path}"

    def _asked(self, path: str) -> httpx.Response:
        return httpx.head(self._url(path), auth=self._auth, trust_env=False)

    def _http(self, verb: str, path: str, **more: object) -> httpx.Response:
        answer = httpx.request(
            verb, self._url(path), timeout=60, auth=self._auth, trust_env=False, **more
        )  # type: ignore[arg-type]
        assert answer.is_success, f"{verb} {path}: {answer.status_code} {answer.text}"
        return answer

    def _answers(self) -> bool:
        try:
            return httpx.get(self._url("/v2/"), auth=self._auth, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

"""Layers of images, made from Debian's and PyPI's packages without an engine, and kept on disk.

A layer is a gzipped tar with times and owners set to nothing, so that the same input is the same
digest. Layers that take seconds to make are kept in a folder, named by a hash of what they are
made of; the next session takes them from there.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SITE = "usr/local/lib/python3.11/dist-packages"
# What Python's standard library and compiled wheels load, and a shell with small tools.
PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1",
    "libstdc++6", "libgomp1", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5",
    "libcrypt1", "libuuid1", "busybox-static",
)  # fmt: skip
BUSYBOX = ("sh", "ls", "cat", "sleep", "mount", "ps", "kill", "id", "wget")
FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
UNUSED = ("usr/share", "usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/unittest")
PIP_TAGS = ("--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:")
BUILD_S = 100  # longest step of making a layer, seconds; half of it is the network


class BuildFailed(Exception):
    """A layer cannot be made; the message says which command failed, and its words."""


@dataclass(frozen=True)
class Layer:
    """A layer: ``digest`` of the gzipped bytes, ``diff_id`` of the tar, ``size`` gzipped, bytes."""

    digest: str
    diff_id: str
    size: int
    content: bytes | Path


def cache() -> Path:
    """Where layers are kept between sessions."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jetfleet-tests"


def base() -> Layer:
    """Debian's Python and what it needs, with its library compiled: about 60 MB unpacked."""
    return _kept("base", (*PACKAGES, *BUSYBOX, *UNUSED), _fill_base)


def installed(lock: Path) -> Layer:
    """What pip installs from this file of pinned and hashed requirements."""

    def fill(root: Path) -> None:
        _run(
            sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile",
            "--disable-pip-version-check", "--require-hashes", *PIP_TAGS,
            "--target", str(root / SITE), "-r", str(lock),
        )  # fmt: skip

    return _kept(lock.parent.name, (lock.read_text(),), fill)


def copied(name: str, *packages: str) -> Layer:
    """Packages as they are installed here; of a wheel with a stable ABI, for any Python 3."""
    found = {p: next(Path(entry) / p for entry in sys.path if (Path(entry) / p).is_dir())
             for p in packages}  # fmt: skip
    sizes = [f"{p} {f.relative_to(place)} {f.stat().st_size}" for p, place in found.items()
             for f in sorted(place.rglob("*")) if f.suffix != ".pyc"]  # fmt: skip

    def fill(root: Path) -> None:
        for package, place in found.items():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(place, root / SITE / package, ignore=ignored)

    return _kept(name, sizes, fill)


def folder(source: Path, target: str) -> Layer:
    """A folder of the repository, at this path of the image."""
    files = {f"{target.strip('/')}/{path.relative_to(source)}": path.read_bytes()
             for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts
             and path.suffix != ".lock"}  # fmt: skip
    return files_layer(files)


def files_layer(files: Mapping[str, bytes]) -> Layer:
    """A layer of these files, path to content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    packed = gzip.compress(buffer.getvalue(), 1, mtime=0)
    return Layer(sha256(packed), sha256(buffer.getvalue()), len(packed), packed)


# -- inside


def sha256(content: bytes) -> str:
    """As digests are written."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _fill_base(root: Path) -> None:
    with tempfile.TemporaryDirectory() as debs:
        _download(Path(debs))
        for package in sorted(Path(debs).glob("*.deb")):
            _run("dpkg-deb", "--extract", str(package), str(root))
    for unused in UNUSED:
        shutil.rmtree(root / unused, ignore_errors=True)
    for path, text in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for empty in ("tmp", "proc", "sys", "dev", "var/tmp", "run"):
        (root / empty).mkdir(parents=True, exist_ok=True)
    for open_to_all in ("tmp", "var/tmp"):
        (root / open_to_all).chmod(0o1777)
    for tool in BUSYBOX:
        (root / "bin" / tool).symlink_to("busybox")
    for name in ("python3", "python"):
        (root / "usr/bin" / name).symlink_to("python3.11")
    compiling = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
    _run("chroot", str(root), "/usr/bin/python3", *compiling, "/usr/lib/python3.11")


def _download(into: Path) -> None:
    """Packages of the machine's own Debian; its lists are renewed if they are stale or missing."""
    command = ("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *PACKAGES)
    try:
        _run(*command, cwd=into)
    except BuildFailed:
        _run("apt-get", "-q", "update")
        _run(*command, cwd=into)


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=BUILD_S
    )
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")


def _kept(name: str, made_of: Mapping[str, str] | tuple[str, ...] | list[str],
          fill: Callable[[Path], None]) -> Layer:  # fmt: skip
    """The layer with this content, from the cache or made by ``fill`` in an empty folder."""
    source = [Path(__file__).read_text(), *made_of]
    key = hashlib.sha256("\n".join(source).encode()).hexdigest()[:16]
    place = cache() / f"{name}-{key}"
    if not (place / "layer.json").exists():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache()) as work:
            ready = Path(work) / "ready"
            ready.mkdir()
            (Path(work) / "root").mkdir()
            fill(Path(work) / "root")
            facts = _pack(Path(work) / "root", ready / "layer.tar.gz")
            (ready / "layer.json").write_text(json.dumps(facts))
            for old in cache().glob(f"{name}-*"):
                shutil.rmtree(old)
            with contextlib.suppress(OSError):  # another session was faster, with the same
                ready.rename(place)
    return Layer(**json.loads((place / "layer.json").read_text()), content=place / "layer.tar.gz")


def _pack(root: Path, target: Path) -> dict[str, object]:
    """Write the folder as a layer; the fields of ``Layer`` without its content."""
    plain, packed = hashlib.sha256(), hashlib.sha256()
    with target.open("wb") as out:
        zipped = gzip.GzipFile("", "wb", 1, _Hashed(out, packed), mtime=0)
        with zipped, tarfile.open(fileobj=_Hashed(zipped, plain), mode="w|") as archive:
            archive.add(root, ".", filter=_anonymous)
    return {
        "digest": f"sha256:{packed.hexdigest()}",
        "diff_id": f"sha256:{plain.hexdigest()}",
        "size": target.stat().st_size,
    }


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


class _Hashed:
    """A file that is written to, with a running hash of what went by."""

    def __init__(self, file: io.IOBase | gzip.GzipFile, hasher: hashlib._Hash) -> None:
        self._file, self._hasher = file, hasher

    def write(self, data: bytes) -> int:
        self._hasher.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

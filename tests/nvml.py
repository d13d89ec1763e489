"""A fake NVIDIA driver for tests: the compiled library, and the file that holds its state."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "models" / "fake_nvml.c"


def compile_library(folder: Path) -> Path:
    """The folder, with a ``libnvidia-ml.so.1`` in it; skips the test without a compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the fake NVML with")
    target = str(folder / "libnvidia-ml.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(SOURCE)], check=True)
    return folder


@dataclass
class FakeDriver:
    """One machine's driver: give ``environment`` to its process, then ``set`` what GPUs do.

    Keys of the state are in ``fake_nvml.c``.
    """

    library: Path
    state: Path
    values: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.set(**self.values)

    def set(self, **values: int) -> None:
        """Replace the state, at once: the library never reads half of it."""
        new = self.state.with_suffix(".new")
        new.write_text("".join(f"{key} {value}\n" for key, value in values.items()))
        new.replace(self.state)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(self.library), "FAKE_NVML_STATE": str(self.state)}

"""The host process of a function, packed so that any image with Python can run it.

It travels in the command line: no file of the agent's machine is shared with the container, and the
engine may be on another machine.
"""

from __future__ import annotations

import base64
import functools
import io
import secrets
import zipfile
from pathlib import Path

from jetfleet_agent.runtimes import Launch

DEFAULT_PORT = 7070
MODULES = ("function_host", "host_calls", "host_loop", "wire")
PACKAGES = ("jetfleet_agent/__init__.py", "jetfleet_agent/contracts/__init__.py")
START = (
    "import base64,sys;p='/tmp/.jetfleet-host.zip';"
    "open(p,'wb').write(base64.b64decode(sys.argv.pop(1)));sys.path[0]=p;"
    "from jetfleet_agent.contracts.function_host import main;main(sys.argv[1:])"
)


@functools.cache
def _packed() -> str:
    """A zip archive of the host's modules, which Python can import from, in base64."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for empty in PACKAGES:
            archive.writestr(empty, "")
        for module in MODULES:
            source = Path(__file__).with_name(f"{module}.py").read_text()
            archive.writestr(f"jetfleet_agent/contracts/{module}.py", source)
    return base64.b64encode(buffer.getvalue()).decode()


def packed_host(arguments: tuple[str, ...], env: dict[str, str], port: int) -> Launch:
    """Starts the host in a container whose image has Python 3.11 or newer as ``python3``."""
    host = {
        "JETFLEET_PORT": str(port),
        "JETFLEET_TOKEN": secrets.token_hex(16),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return Launch(
        (*arguments,),
        env={**env, **host},
        channel=True,
        port=port,
        entrypoint=("python3", "-c", START, _packed()),
    )

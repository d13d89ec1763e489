"""What type of file is this? Google's Magika, a small model that reads content, not names."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from magika import Magika

MODEL = Magika()  # loaded once for each replica, about 0.4 s


def identify(input: dict[str, Any]) -> dict[str, Any]:
    """The type of ``{"path": ...}`` (on the worker) or of ``{"base64": ...}`` (the content)."""
    if "base64" in input:
        result = MODEL.identify_bytes(base64.b64decode(input["base64"], validate=True))
    elif "path" in input:
        result = MODEL.identify_path(Path(input["path"]))
    else:
        raise ValueError("give base64 (the content of a file) or path (a file on the worker)")
    if not result.ok:
        raise ValueError(f"cannot read it: {result.status}")
    return {
        "label": result.output.label,
        "description": result.output.description,
        "mime_type": result.output.mime_type,
        "group": result.output.group,
        "score": round(float(result.score), 4),
    }

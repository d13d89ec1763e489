"""The Open Inference Protocol (v2, HTTP) on port 8080: one model that doubles tensors of numbers
and turns strings around.

A call's ``parameters`` ``sleep_s``, ``fail`` and ``leave`` say how to misbehave.
"""

import json
import math
import os
import re
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080
NAME = os.environ.get("MODEL_NAME", "doubler")
LOAD_S = float(os.environ.get("LOAD_S", "0"))
NUMBERS = {"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT32", "UINT64", "FP32", "FP64"}
loaded = threading.Event()


class Refused(Exception):
    """What the caller did wrong, and the status for it."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(self.asked)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.reply(lambda: self.inferred(body))

    def reply(self, work):
        try:
            status, body = work()
        except Refused as refused:
            status, body = refused.status, {"error": str(refused)}
        content = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def asked(self):
        if self.path == "/v2":
            return 200, {"name": "tests", "version": "1", "extensions": []}
        if self.path == "/v2/health/live":
            return 200, None
        if self.path == "/v2/health/ready":
            return (200 if loaded.is_set() else 503), None
        if self.model().endswith("/ready"):
            return (200 if loaded.is_set() else 503), None
        tensor = {"datatype": "FP32", "shape": [-1]}
        return 200, {
            "name": NAME, "versions": ["1"], "platform": "tests",
            "inputs": [{"name": "input", **tensor}], "outputs": [{"name": "output", **tensor}],
        }  # fmt: skip

    def inferred(self, body):
        if not self.model().endswith("/infer"):
            raise Refused(404, f"no such address: {self.path}")
        try:
            request = json.loads(body)
            tensors = request["inputs"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(400, f"not a request: {error!r}") from error
        parameters = request.get("parameters", {})
        time.sleep(parameters.get("sleep_s", 0))
        if parameters.get("leave"):
            os._exit(3)
        if parameters.get("fail"):
            raise Refused(500, "no good")
        answer = {
            "model_name": NAME,
            "model_version": "1",
            "outputs": [doubled(t) for t in tensors],
        }
        if "id" in request:
            answer["id"] = request["id"]
        return 200, answer

    def model(self):
        """What follows the model's name and version in the address."""
        found = re.fullmatch(r"/v2/models/([^/]+)(/versions/[^/]+)?(/ready|/infer)?", self.path)
        if found is None:
            raise Refused(404, f"no such address: {self.path}")
        if found[1] != NAME:
            raise Refused(404, f"unknown model: {found[1]}")
        return found[3] or ""

    def log_message(self, message, *arguments):
        print(message % arguments, flush=True)


def doubled(tensor):
    """The output for one input tensor."""
    missing = {"name", "shape", "datatype", "data"} - set(tensor)
    if missing:
        raise Refused(400, f"tensor lacks {sorted(missing)}")
    data = list(flat(tensor["data"]))
    if len(data) != math.prod(tensor["shape"]):
        raise Refused(400, f"shape {tensor['shape']} does not fit {len(data)} elements")
    if tensor["datatype"] in NUMBERS:
        data = [2 * number for number in data]
    elif tensor["datatype"] == "BYTES":
        data = [text[::-1] for text in data]
    else:
        raise Refused(400, f"unexpected datatype {tensor['datatype']}")
    return {**tensor, "name": tensor["name"].replace("input", "output"), "data": data}


def flat(data):
    for element in data:
        if isinstance(element, list):
            yield from flat(element)
        else:
            yield element


def load():
    time.sleep(LOAD_S)
    loaded.set()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.Thread(target=load, daemon=True).start()
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()

"""A model as Amazon SageMaker wants it: started with ``serve``, port 8080, /ping and /invocations.

The body of a call is JSON. A mapping's ``sleep_s``, ``status``, ``reply_bytes`` and ``leave`` say
how to misbehave; anything else is given back with its content type.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8080
LOAD_S = float(os.environ.get("LOAD_S", "0"))
loaded = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path != "/ping":
            self.answer(404, b"")
            return
        self.answer(200 if loaded.is_set() else 503, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/invocations":
            self.answer(404, b"")
            return
        kind = self.headers.get("content-type", "application/octet-stream")
        order = parsed(body) if kind.startswith("application/json") else {}
        time.sleep(order.get("sleep_s", 0))
        if order.get("leave"):
            os._exit(3)
        if "status" in order:
            self.answer(order["status"], b'{"message": "no good"}')
        elif "reply_bytes" in order:
            self.answer(200, b"x" * order["reply_bytes"], "text/plain")
        else:
            self.answer(200, body, kind)

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, message, *arguments):
        print(message % arguments, flush=True)


def parsed(body):
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def load():
    time.sleep(LOAD_S)
    loaded.set()


if __name__ == "__main__":
    if sys.argv[1:] != ["serve"]:
        sys.exit(f"usage: serve; got {sys.argv[1:]}")
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.Thread(target=load, daemon=True).start()
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()

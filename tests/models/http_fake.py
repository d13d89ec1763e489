"""What the fake model servers of this folder share. Standard library.

``python NAME_server.py --port N [--load-s S] [--never]``; ``PORT`` works too.
"""

import argparse
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STARTED = time.monotonic()


def options(*flags, **numbers):
    """Parsed; ``numbers`` are further options with their defaults, without their dashes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "0")))
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--never", action="store_true")
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    for name, default in numbers.items():
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=default)
    return parser.parse_args()


class Fake(BaseHTTPRequestHandler):
    """One request. ``trouble`` runs the method named by a request that asks for it."""

    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024  # an answer goes out whole, without the 40 ms of a delayed acknowledgement
    options = None

    def do_GET(self):
        self.get()

    def do_POST(self):
        self.post()

    def do_PUT(self):
        self.put()

    @property
    def loading(self):
        return self.options.never or time.monotonic() - STARTED < self.options.load_s

    def body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def trouble(self, text):
        """Whether this text asked for trouble, and it was made."""
        method = getattr(self, "trouble_" + str(text).replace(" ", "_"), None)
        if method is not None:
            method()
        return method is not None

    def trouble_crash(self):
        print("crashing now", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def trouble_exit(self):
        os._exit(5)

    def trouble_error(self):
        self.answer(500, "a stack trace", kind="text/plain")

    def trouble_not_json(self):
        self.answer(200, "{hello")

    def trouble_flood(self):
        self.answer(200, {"output": "x" * 3_000_000, "status": "succeeded"})

    def trouble_cut(self):
        self.close_connection = True
        self.connection.close()

    def trouble_hang(self):
        """Until the caller goes away; says so in the file named by the environment."""
        note = Path(os.environ["NOTE"])
        note.write_text("here")
        self.connection.settimeout(30)
        gone = self.connection.recv(1) == b""
        note.write_text("caller left" if gone else "caller spoke")

    def answer(self, status, body, kind="application/json", **headers):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def raw(self, data):
        """A piece of a body that was begun; an empty one ends it."""
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        except ConnectionError:
            note = os.environ.get("NOTE")
            if note:
                Path(note).write_text("caller left")
            raise

    def log_message(self, format, *args):
        print(format % args, file=sys.stderr)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        print("connection error:", sys.exc_info()[1], file=sys.stderr)


def serve(handler):
    with Server(("127.0.0.1", handler.options.port), handler) as server:
        server.serve_forever()

"""A small server that speaks the OpenAI API, with a handle on every trouble. Standard library.

``python openai_server.py --port N [--load-s S] [--no-health] [--never] [--fork] [--idle-s S]``

The words of the last message are the answer, one token each; special contents ask for trouble.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STARTED = time.monotonic()


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "0")))
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--token-s", type=float, default=0.0)
    parser.add_argument("--idle-s", type=float, default=None)
    parser.add_argument("--no-health", action="store_true")
    parser.add_argument("--never", action="store_true")
    parser.add_argument("--fork", action="store_true")
    return parser.parse_args()


OPTIONS = options()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = OPTIONS.idle_s

    def do_GET(self):
        loading = OPTIONS.never or time.monotonic() - STARTED < OPTIONS.load_s
        if self.path == "/health" and OPTIONS.no_health:
            self.answer(404, {"error": {"message": "no such page"}})
        elif loading:
            self.answer(503, {"error": {"message": "loading"}})
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "toy-model"}]})
        else:
            self.answer(200, {"status": "ok"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/embeddings":
            size = len(body["input"])
            data = [{"index": 0, "embedding": [size, 0.5]}]
            self.answer(200, {"object": "list", "data": data, "model": body.get("model")})
        elif self.path == "/v1/completions":
            self.complete(body, body["prompt"], chat=False)
        else:
            self.complete(body, body["messages"][-1]["content"], chat=True)

    def complete(self, body, text, chat):
        trouble = getattr(self, "trouble_" + text.replace(" ", "_").replace("-", "_"), None)
        if trouble is not None:
            trouble(body)
        elif body.get("stream"):
            self.stream(body, text, chat)
        else:
            message = {"role": "assistant", "content": text}
            choice = {"message": message} if chat else {"text": text}
            choice |= {"index": 0, "finish_reason": "stop"}
            self.answer(200, {"model": body.get("model"), "choices": [choice]})

    def stream(self, body, text, chat):
        self.begin()
        base = {"id": "c-1", "created": 1, "model": body.get("model")}
        base["object"] = "chat.completion.chunk" if chat else "text_completion"
        for token in text.split(" "):
            word = token + " "
            choice = {"delta": {"content": word}} if chat else {"text": word}
            self.event({**base, "choices": [{"index": 0, "finish_reason": None, **choice}]})
            time.sleep(OPTIONS.token_s)
        last = {"delta": {}} if chat else {"text": ""}
        self.event({**base, "choices": [{"index": 0, "finish_reason": "stop", **last}]})
        self.event({**base, "choices": [], "usage": {"completion_tokens": len(text.split(" "))}})
        self.raw(b"data: [DONE]\n\n")
        self.raw(b"")

    # -- ways to fail

    def trouble_refuse(self, body):
        self.answer(400, {"error": {"message": "context is too long", "type": "invalid"}})

    def trouble_refuse_plainly(self, body):
        self.answer(500, "a stack trace", kind="text/plain")

    def trouble_error_in_stream(self, body):
        self.begin()
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        self.event({"error": {"message": "out of cache", "code": 500}})
        self.raw(b"")

    def trouble_error_field(self, body):
        self.begin()
        self.raw(b'error: {"message": "llama is tired"}\n\n')
        self.raw(b"")

    def trouble_stop_early(self, body):
        self.begin()
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        self.raw(b"")

    def trouble_cut(self, body):
        self.begin()
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        self.close_connection = True
        self.connection.close()

    def trouble_crash(self, body):
        print("crashing now", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def trouble_crash_in_stream(self, body):
        self.begin()
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        os._exit(5)

    def trouble_not_json(self, body):
        self.answer(200, "hello", kind="text/plain")

    def trouble_not_json_number(self, body):
        self.answer(200, '{"choices": [NaN]}')

    def trouble_not_json_in_stream(self, body):
        self.begin()
        self.raw(b"data: {nonsense\n\n")
        self.raw(b"")

    def trouble_flood(self, body):
        self.answer(200, {"choices": [{"text": "x" * 3_000_000}]})

    def trouble_flood_in_stream(self, body):
        self.begin()
        for _ in range(40):
            self.event({"choices": [{"index": 0, "delta": {"content": "x" * 100_000}}]})
        self.raw(b"")

    def trouble_error_with_200(self, body):
        self.answer(200, {"error": {"message": "not today"}})

    def trouble_hang(self, body):
        """Until the caller goes away; says so in the file named by the environment."""
        self.connection.settimeout(30)
        gone = self.connection.recv(1) == b""
        Path(os.environ["NOTE"]).write_text("caller left" if gone else "caller spoke")

    def trouble_tools(self, body):
        def call(**function):
            return {"tool_calls": [{"index": 0, **function}]}

        self.begin()
        for delta in (
            {"role": "assistant", "content": None},
            call(id="call-1", type="function", function={"name": "look", "arguments": ""}),
            call(function={"arguments": '{"at"'}),
            call(function={"arguments": ': "sky"}'}),
        ):
            self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        self.raw(b"data: [DONE]\n\n")
        self.raw(b"")

    # -- HTTP

    def answer(self, status, body, kind="application/json"):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def event(self, body):
        self.raw(b"data: " + json.dumps(body).encode() + b"\n\n")

    def raw(self, data):
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
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


if __name__ == "__main__":
    if OPTIONS.fork:
        helper = subprocess.Popen(["sleep", "60"])
        print("helper", helper.pid, flush=True)
    with Server(("127.0.0.1", OPTIONS.port), Handler) as server:
        server.serve_forever()

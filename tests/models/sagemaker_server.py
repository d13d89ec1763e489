"""A small server as SageMaker wants one: /ping and /invocations, whatever the body.

The input ``text`` comes back, as JSON; special texts ask for trouble or for other types.
"""

import json
import time

from http_fake import Fake, options, serve


class Handler(Fake):
    options = options()

    def get(self):
        ready = self.path == "/ping" and not self.loading
        self.answer(200 if ready else 503, "", kind="")

    def post(self):
        body = self.body()
        text = body["text"] if isinstance(body, dict) and "text" in body else None
        if self.path != "/invocations" or self.headers["Content-Type"] != "application/json":
            self.answer(404, "")
        elif not self.trouble(text):
            self.answer(200, {"text": body})

    # -- other types

    def trouble_csv(self):
        self.answer(200, "0.25,0.75\n", kind="text/csv; charset=utf-8")

    def trouble_strange_charset(self):
        self.answer(200, "a", kind="text/plain; charset=martian")

    def trouble_image(self):
        self.answer(200, "\x89PNG", kind="image/png")

    def trouble_unnamed(self):
        self.answer(200, "[1]", kind="application/octet-stream")

    def trouble_events(self):
        self.begin("text/event-stream")
        for data in ('{"token": "a"}', "plain words", "[DONE]"):
            self.raw(f"data: {data}\n\n".encode())
        self.raw(b"")

    def trouble_lines(self):
        self.begin("application/jsonlines")
        for piece in (b'{"n": 1}\n{"n"', b": 2}\n\n", b'{"n": 3}'):
            self.raw(piece)
        self.raw(b"")

    def trouble_words_in_lines(self):
        self.begin("application/jsonlines")
        self.raw(b"hello\n")
        self.raw(b"")

    def trouble_error_in_events(self):
        self.begin("text/event-stream")
        self.raw(b'data: "so"\n\ndata: {"error": {"message": "out of cache"}}\n\n')
        self.raw(b"")

    def trouble_flood_of_lines(self):
        self.begin("application/jsonlines")
        for _ in range(40):
            self.raw(json.dumps("x" * 100_000).encode() + b"\n")
        self.raw(b"")

    def trouble_cut_in_stream(self):
        self.begin("application/jsonlines")
        self.raw(b"1\n")
        self.close_connection = True
        self.connection.close()

    def trouble_endless(self):
        self.begin("application/jsonlines")
        while True:
            self.raw(b"1\n")
            time.sleep(0.02)


if __name__ == "__main__":
    serve(Handler)

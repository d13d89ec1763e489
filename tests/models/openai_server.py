"""A small server that speaks the OpenAI API, with a handle on every trouble. Standard library.

``python openai_server.py --port N [--load-s S] [--no-health] [--never] [--fork]
[--token-s S] [--idle-s S]``: beside a token, and until an idle connection is closed.

The words of the last message are the answer, one token each; special contents ask for trouble.
"""

import json
import os
import subprocess
import time

from http_fake import Fake, options, serve

OPTIONS = options("--no-health", "--fork", token_s=0.0, idle_s=None)
EVENTS = "text/event-stream; charset=utf-8"


class Handler(Fake):
    options = OPTIONS
    timeout = OPTIONS.idle_s

    def get(self):
        if self.path == "/health" and OPTIONS.no_health:
            self.answer(404, {"error": {"message": "no such page"}})
        elif self.loading:
            self.answer(503, {"error": {"message": "loading"}})
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "toy-model"}]})
        else:
            self.answer(200, {"status": "ok"})

    def post(self):
        body = self.body()
        if self.path == "/v1/embeddings":
            size = len(body["input"])
            data = [{"index": 0, "embedding": [size, 0.5]}]
            self.answer(200, {"object": "list", "data": data, "model": body.get("model")})
        elif self.path == "/v1/completions":
            self.complete(body, body["prompt"], chat=False)
        else:
            self.complete(body, body["messages"][-1]["content"], chat=True)

    def complete(self, body, text, chat):
        if self.trouble(text):
            return
        if body.get("stream"):
            self.stream(body, text, chat)
        else:
            message = {"role": "assistant", "content": text}
            choice = {"message": message} if chat else {"text": text}
            choice |= {"index": 0, "finish_reason": "stop"}
            self.answer(200, {"model": body.get("model"), "choices": [choice]})

    def stream(self, body, text, chat):
        self.begin(EVENTS)
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

    def trouble_refuse(self):
        self.answer(400, {"error": {"message": "context is too long", "type": "invalid"}})

    def trouble_error_in_stream(self):
        self.begin(EVENTS)
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        self.event({"error": {"message": "out of cache", "code": 500}})
        self.raw(b"")

    def trouble_error_field(self):
        self.begin(EVENTS)
        self.raw(b'error: {"message": "llama is tired"}\n\n')
        self.raw(b"")

    def trouble_stop_early(self):
        self.begin(EVENTS)
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        self.raw(b"")

    def trouble_cut_in_stream(self):
        self.begin(EVENTS)
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        self.close_connection = True
        self.connection.close()

    def trouble_crash_in_stream(self):
        self.begin(EVENTS)
        self.event({"choices": [{"index": 0, "delta": {"content": "so "}}]})
        os._exit(5)

    def trouble_not_json_number(self):
        self.answer(200, '{"choices": [NaN]}')

    def trouble_not_json_in_stream(self):
        self.begin(EVENTS)
        self.raw(b"data: {nonsense\n\n")
        self.raw(b"")

    def trouble_flood_in_stream(self):
        self.begin(EVENTS)
        for _ in range(40):
            self.event({"choices": [{"index": 0, "delta": {"content": "x" * 100_000}}]})
        self.raw(b"")

    def trouble_flood_without_end(self):
        self.begin(EVENTS)
        token = {"token": "x" * 100_000}
        while True:
            choice = {"index": 0, "delta": {}, "logprobs": {"content": [token]}}
            self.event({"choices": [choice]})

    def trouble_error_with_200(self):
        self.answer(200, {"error": {"message": "not today"}})

    def trouble_tools(self):
        def call(**function):
            return {"tool_calls": [{"index": 0, **function}]}

        self.begin(EVENTS)
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

    def event(self, body):
        self.raw(b"data: " + json.dumps(body).encode() + b"\n\n")


if __name__ == "__main__":
    if OPTIONS.fork:
        helper = subprocess.Popen(["sleep", "60"])
        print("helper", helper.pid, flush=True)
    serve(Handler)

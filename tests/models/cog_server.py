"""A small server that behaves as Cog 0.23.1 was seen to. One slot, freed after the reply.

The input ``text`` is the output, word by word; special texts ask for trouble. ``--old``: no PUT and
no streaming. ``--setup-fails``, ``--unhealthy``: it never serves. ``--no-stream``: 406 for streams.
``--deaf``: a cancellation takes effect at the end.
"""

import json
import os
import threading
import time
from pathlib import Path

from http_fake import Fake, options, serve

OPTIONS = options("--old", "--setup-fails", "--unhealthy", "--no-stream", "--deaf")
SLOT = threading.Lock()
SLOT_FREED_S = 0.007
CANCELLED = set()
RUNNING = set()
WORKER = {"lives": True}


class Handler(Fake):
    options = OPTIONS

    def get(self):
        setup = {"status": "succeeded", "logs": "loading\n"}
        if OPTIONS.setup_fails:
            setup = {"status": "failed", "logs": "loading\nRuntimeError: no weights\n"}
            status = "SETUP_FAILED"
        elif OPTIONS.unhealthy or not WORKER["lives"]:
            status = "UNHEALTHY"
        elif self.loading:
            status = "STARTING"
        else:
            status = "BUSY" if SLOT.locked() else "READY"
        self.answer(200, {"status": status, "setup": setup})

    def put(self):
        if OPTIONS.old:
            self.body()
            self.answer(405, "")
        else:
            self.predict(self.path.rsplit("/", 1)[1])

    def post(self):
        if self.path.endswith("/cancel"):
            id = self.path.split("/")[2]
            if id in RUNNING:
                CANCELLED.add(id)
            self.answer(200 if id in RUNNING else 404, {})
        else:
            self.predict(None)

    def predict(self, id):
        body = self.body()
        id = id or body["id"]
        text = body["input"].get("text")
        stream = self.headers["Accept"] == "text/event-stream" and not OPTIONS.old
        if id in RUNNING:
            self.answer(202, {"id": id, "status": "processing"})
        elif stream and OPTIONS.no_stream:
            self.answer(406, {"error": "This model does not support streaming responses."})
        elif text is None:
            field = {"loc": ["body", "input", "text"], "msg": "Field required"}
            self.answer(422, {"detail": [field]})
        elif not WORKER["lives"] or not SLOT.acquire(blocking=False):
            self.answer(409, {"error": "At capacity - all prediction slots busy"})
        else:
            RUNNING.add(id)
            print("running", id, flush=True)
            try:
                if not self.trouble(text):
                    self.run(id, text, body["input"].get("s", 0), stream)
            finally:
                RUNNING.discard(id)
                threading.Timer(SLOT_FREED_S, SLOT.release).start()

    def run(self, id, text, pause_s, stream):
        if stream:
            self.begin("text/event-stream")
            self.event("start", {"id": id, "status": "processing"})
            self.event("log", {"data": "a line\n", "source": "stdout"})
        said = []
        for index, word in enumerate(text.split(" ")):
            if id in CANCELLED and not OPTIONS.deaf:
                break
            said.append(word)
            if stream:
                self.event("output", {"chunk": word, "index": index})
            time.sleep(pause_s)
        status = "canceled" if id in CANCELLED else "succeeded"
        self.end({"id": id, "status": status, "logs": "a line\n", "output": said}, stream)

    def end(self, document, stream=False):
        if stream:
            self.event("completed", document)
            self.raw(b"")
        else:
            self.answer(200, document)

    def event(self, name, data):
        self.raw(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())

    # -- ways to fail

    def trouble_boom(self):
        self.end({"status": "failed", "error": "ValueError: boom", "logs": "before\n"})

    def trouble_unfinished(self):
        self.end({"status": "processing"})

    def trouble_setup_again(self):
        self.answer(503, {"error": "Setup has not finished yet."})

    def trouble_worker_dies(self):
        WORKER["lives"] = False
        self.end({"status": "failed", "error": "Worker crashed"})

    def trouble_last_words(self):
        WORKER["lives"] = False
        self.end({"status": "succeeded", "output": "bye"})

    def trouble_stop_early(self):
        self.begin("text/event-stream")
        self.event("output", {"chunk": "so", "index": 0})
        self.raw(b"")

    def trouble_hang(self):
        """As a model that computes: it sees neither a cancellation nor a closed connection."""
        Path(os.environ["NOTE"]).write_text("here")
        time.sleep(60)


if __name__ == "__main__":
    serve(Handler)

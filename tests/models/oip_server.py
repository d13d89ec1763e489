"""A small server that speaks the Open Inference Protocol v2; its model doubles its numbers.

``--no-list``: without the page of models, as Triton. A parameter ``do`` asks for trouble.
"""

from http_fake import Fake, options, serve

OPTIONS = options("--no-list")
MODEL = "doubler/v1"
PATH = "/v2/models/doubler%2Fv1"


class Handler(Fake):
    options = OPTIONS

    def get(self):
        if self.path == "/v2/health/ready":
            self.answer(503 if self.loading else 200, "", kind="")
        elif self.path == f"{PATH}/ready":
            self.answer(200, {"name": MODEL, "ready": True})
        elif self.path == "/v2/models" and not OPTIONS.no_list:
            self.answer(200, {"models": [MODEL]})
        else:
            self.answer(404, {"error": f"unknown: {self.path}"})

    def post(self):
        body = self.body()
        if self.path != f"{PATH}/infer":
            self.answer(404, {"error": f"unknown: {self.path}"})
        elif not self.trouble(body.get("parameters", {}).get("do")):
            self.infer(body)

    def infer(self, body):
        tensor = body["inputs"][0]
        size = 1
        for length in tensor["shape"]:
            size *= length
        if size != len(tensor["data"]):
            self.answer(400, {"error": f"got {len(tensor['data'])} elements, expected {size}"})
            return
        data = [2 * number for number in tensor["data"]]
        output = {**tensor, "name": "doubled", "data": data}
        self.answer(200, {"id": body["id"], "model_name": MODEL, "outputs": [output]})

    def trouble_error_with_200(self):
        self.answer(200, {"error": "not today"})

    def trouble_binary(self):
        header = {"Inference_Header_Content_Length": "20"}
        self.answer(200, "{}....", kind="application/octet-stream", **header)


if __name__ == "__main__":
    serve(Handler)

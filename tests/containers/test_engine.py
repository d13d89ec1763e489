"""The engine, the registry and the images that tests of containers stand on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from containers.engine import Engine
from containers.images import RECIPES, Images
from containers.registry import Registry

# As an agent runs a model, without asking an agent.
HARDENED: dict[str, Any] = {
    "network_mode": "none", "read_only": True, "tmpfs": {"/tmp": "size=64m"}, "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"], "user": "65534:65534", "init": True, "pids_limit": 128,
}  # fmt: skip
READY_S = 30.0
ASK = """
import json, sys, urllib.request
verb, url, body = json.loads(sys.argv[1])
data = None if body is None else json.dumps(body).encode()
headers = {"content-type": "application/json"}
request = urllib.request.Request(url, data, headers, method=verb)
try:
    with urllib.request.urlopen(request) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode()]))
except OSError as error:
    print(json.dumps([0, str(error)]))
"""


@contextmanager
def running(engine: Engine, reference: str, *command: str, **more: Any) -> Iterator[Container]:
    """A hardened container of this image, removed afterwards."""
    container = engine.client.containers.run(
        reference, list(command) or None, detach=True, **{**HARDENED, **more}
    )
    try:
        yield container
    finally:
        container.remove(force=True)


def asked(container: Container, verb: str, url: str, body: Any = None) -> tuple[int, str]:
    """Status and body of what a server in the container answers; 0: it does not."""
    order = json.dumps([verb, f"http://127.0.0.1:{url}", body])
    done = container.exec_run(["python3", "-c", ASK, order])
    assert done.exit_code == 0, done.output
    status, text = json.loads(done.output)
    return status, text


def answered(container: Container, url: str, expected: str = "") -> str:
    """What a GET is answered with, once it is 200 and holds ``expected``."""
    deadline = time.monotonic() + READY_S
    while True:
        container.reload()
        assert container.status == "running", container.logs().decode()
        status, text = asked(container, "GET", url)
        if status == 200 and expected in text:
            return text
        assert time.monotonic() < deadline, (status, text, container.logs().decode())


def function_says(engine: Engine, images: Images, name: str, code: str) -> Any:
    """What this code prints, with the image's model imported."""
    command = ("python3", "-c", f"import json, model; print(json.dumps({code}))")
    with running(engine, images[name], *command, working_dir="/app") as container:
        ended = container.wait(timeout=READY_S)
        said = container.logs().decode()
        assert ended["StatusCode"] == 0, said
        return json.loads(said)


@pytest.mark.parametrize("name", RECIPES)
def test_image_is_pulled_from_the_registry(engine: Engine, images: Images, name: str) -> None:
    image = engine.client.images.pull(images[name])
    assert image.attrs["RepoDigests"] == [images.pushed(name).pinned]
    if name == "base":
        assert image.attrs["Size"] < 150 * 2**20


def test_functions_of_the_image_run_without_any_right(engine: Engine, images: Images) -> None:
    assert function_says(engine, images, "function", "model.echo([1, 'a'])") == [1, "a"]
    about = function_says(engine, images, "function", "model.about(None)")
    assert (about["uid"], about["gid"], about["file"]) == (65534, 65534, "/app/model.py")


def test_hostile_functions_tell_what_they_could_do(engine: Engine, images: Images) -> None:
    orders = [
        {"attack": "connect", "targets": ["1.1.1.1:53", "127.0.0.1:1"]},
        {"attack": "write", "paths": ["/app/x", "/tmp/x"]},
        *({"attack": name} for name in ("fork_bomb", "fill", "identity", "kernel")),
    ]
    code = f"[model.attack(order) for order in {orders}]"
    outcomes = function_says(engine, images, "hostile", code)
    connect, write, fork_bomb, fill, identity, kernel = outcomes
    assert connect == {"1.1.1.1:53": "ENETUNREACH", "127.0.0.1:1": "ECONNREFUSED"}
    assert write == {"/app/x": "EROFS", "/tmp/x": "written"}
    assert fork_bomb["refused"] == "BlockingIOError"
    assert fork_bomb["started"] < 128
    assert fill == {"mib": 63, "refused": "No space left on device"}
    assert identity["uid"] == 65534
    assert set(kernel.values()) == {"EPERM"}


def test_cog_predicts(engine: Engine, images: Images) -> None:
    with running(engine, images["cog"]) as container:
        answered(container, "5000/health-check", '"READY"')
        status, text = asked(
            container, "POST", "5000/predictions", {"input": {"text": "ab", "times": 2}}
        )
        assert (status, json.loads(text)["output"]) == (200, "abab")
        failing = {"input": {"text": "ab", "fail": True}}
        status, text = asked(container, "POST", "5000/predictions", failing)
        assert (status, json.loads(text)["status"]) == (200, "failed")


def test_cog_yields_pieces(engine: Engine, images: Images) -> None:
    with running(engine, images["cog-stream"]) as container:
        answered(container, "5000/health-check", '"READY"')
        _, text = asked(container, "POST", "5000/predictions", {"input": {"text": "one two"}})
        assert json.loads(text)["output"] == ["one ", "two "]


def test_cog_predicts_two_at_once(engine: Engine, images: Images) -> None:
    with running(engine, images["cog-async"]) as container:
        answered(container, "5000/health-check", '"READY"')
        order = {"input": {"text": "a", "sleep_s": 1}}
        ask = partial(asked, container, "POST", "5000/predictions", order)
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(ask) for _ in range(2)]
        assert [json.loads(answer.result()[1])["output"] for answer in answers] == ["a", "a"]


def test_cog_tells_that_its_setup_failed(engine: Engine, images: Images) -> None:
    with running(engine, images["cog-broken"]) as container:
        assert "weights.bin" in answered(container, "5000/health-check", '"SETUP_FAILED"')


def test_sagemaker_server_needs_its_argument_and_answers(engine: Engine, images: Images) -> None:
    with running(engine, images["sagemaker"]) as container:
        assert container.wait(timeout=READY_S)["StatusCode"] == 1
    with running(engine, images["sagemaker"], "serve") as container:
        answered(container, "8080/ping")
        assert asked(container, "POST", "8080/invocations", [1]) == (200, "[1]")
        assert asked(container, "POST", "8080/invocations", {"status": 503})[0] == 503


def test_open_inference_server_doubles(engine: Engine, images: Images) -> None:
    with running(engine, images["oip"]) as container:
        answered(container, "8080/v2/health/ready")
        answered(container, "8080/v2/models/doubler/ready")
        tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [[1.5, 2]]}
        order = {"id": "7", "inputs": [tensor]}
        status, text = asked(container, "POST", "8080/v2/models/doubler/infer", order)
        assert (status, json.loads(text)["outputs"][0]["data"]) == (200, [3.0, 4])
        order["inputs"] = [{**tensor, "shape": [3]}]
        status, text = asked(container, "POST", "8080/v2/models/doubler/infer", order)
        assert (status, list(json.loads(text))) == (400, ["error"])


def test_language_model_chats(engine: Engine, images: Images) -> None:
    with running(engine, images["llama"]) as container:
        answered(container, "8000/health")
        order = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
        status, text = asked(container, "POST", "8000/v1/chat/completions", order)
        assert status == 200, text
        assert json.loads(text)["choices"][0]["message"]["content"]


def test_engine_and_its_client_outlive_a_restart_and_a_kill(engine: Engine, images: Images) -> None:
    engine.client.images.pull(images["base"])
    engine.restart()
    assert engine.client.images.get(images["base"])
    engine.kill()
    engine.start()
    assert engine.client.images.get(images["base"])


def test_stopped_registry_comes_back_with_its_images(
    engine: Engine, registry: Registry, images: Images
) -> None:
    reference = images["base"]
    registry.stop()
    try:
        with pytest.raises(APIError, match="connection refused"):
            engine.client.images.pull(f"{registry.address}/base", "latest")
    finally:
        registry.start()
    assert engine.client.images.pull(reference)


def test_spoiled_layer_of_a_variant_hurts_no_other_image(
    engine: Engine, registry: Registry, images: Images
) -> None:
    variant = images.variant("function", "spoiled", {"app/extra": b"spoil me"})
    registry.blob(variant.layers[-1]).write_bytes(b"not a layer")
    pulling = engine.client.api.pull(variant.reference, stream=True, decode=True)
    assert any("error" in line for line in pulling)
    assert engine.client.images.pull(images["function"])


def test_removed_image_is_not_found(engine: Engine, registry: Registry, images: Images) -> None:
    variant = images.variant("base", "removed", {"gone": b"1"})
    registry.remove(variant.repository, variant.digest)
    with pytest.raises(NotFound):
        engine.client.images.pull(variant.reference)


def test_closed_engine_leaves_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory, engine: Engine, images: Images
) -> None:
    own = Engine(tmp_path_factory.mktemp("own"), "--live-restore")
    try:
        own.start()
        inner = own.client.networks.create("inner", internal=True)
        own.client.containers.run(
            images["base"], ["sleep", "600"], detach=True, network_mode="bridge"
        )
        own.kill()  # its container lives on, and nobody is left to be asked to remove it
        assert own.left_behind()
    finally:
        own.close()
        engine.restart()  # the other's start emptied the chains that all engines share
    assert own.left_behind() == []
    assert not Path(f"/sys/class/net/br-{inner.id[:12]}").exists()
    assert not own.folder.exists()
    assert engine.client.ping()

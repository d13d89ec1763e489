"""Reading YAML manifests: what is understood, and how mistakes are told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jetfleet.errors import InvalidRequest
from jetfleet.manifest import Manifest, parse, read_manifest
from jetfleet.placement_specs import PlacementSpec
from jetfleet.specs import ContractName, ModelSpec

GOOD = """\
# models first
kind: model
name: filetype
version: 2
function: models/filetype.py:identify
resources: {memory_mib: 300}
env: {THREADS: 1}
---
kind: model
name: chat
contract: openai
command: ["{python}", server.py, "{port}", --threads, "2"]
---
kind: job
name: files
model: filetype
max_replicas: 3
---
kind: job
name: chat
model: chat:1
concurrency: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "filetype.py").touch()
    (tmp_path / "server.py").touch()
    return tmp_path


def read(folder: Path, text: str, *registered: ModelSpec) -> Manifest:
    path = folder / "fleet.yaml"
    path.write_text(text)
    known = {(m.name, v): m for m in registered for v in (m.version, None)}
    return read_manifest(path, lambda name, version: known.get((name, version)))


def refusal(folder: Path, text: str, *registered: ModelSpec) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(folder, text, *registered)
    return str(caught.value).removeprefix(f"{folder}/")


def test_documents_become_models_and_jobs_in_order(folder: Path) -> None:
    manifest = read(folder, GOOD)
    assert [model.ref for model in manifest.models] == ["filetype:2", "chat:1"]
    assert [(job.name, job.model.ref) for job in manifest.jobs] == [
        ("files", "filetype:2"),
        ("chat", "chat:1"),
    ]
    assert manifest.models[1].contract is ContractName.OPENAI
    assert manifest.models[0].env == {"THREADS": "1"}
    assert manifest.jobs[0].max_replicas == 3


def test_paths_become_absolute_against_the_folder_of_the_file(folder: Path) -> None:
    filetype, chat = read(folder, GOOD).models
    assert filetype.function == f"{folder}/models/filetype.py:identify"
    assert chat.command == (sys.executable, f"{folder}/server.py", "{port}", "--threads", "2")


def test_reading_the_same_file_twice_gives_equal_specs(folder: Path) -> None:
    assert read(folder, GOOD) == read(folder, GOOD)


def test_a_job_may_name_a_model_that_is_only_registered(folder: Path) -> None:
    old = ModelSpec(name="old", version="7", function="/srv/old.py:run")
    manifest = read(folder, "{kind: job, name: j, model: 'old:7'}", old)
    assert manifest.jobs[0].model == old


def test_empty_documents_are_left_out(folder: Path) -> None:
    text = "---\n---\n" + GOOD + "---\n# the end\n"
    assert len(list(parse(folder / "x.yaml", text))) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "fleet.yaml: nothing is declared"),
        ("kind: [", "fleet.yaml:1: not valid YAML"),
        ("kind: job\n? [a, b]\n: 1", "fleet.yaml:2: not valid YAML: a key must be a word"),
        ("kind: job\n? {a: 1}\n: 1", "fleet.yaml:2: not valid YAML: a key must be a word"),
        ("- a\n- b", "fleet.yaml:1: a document is a mapping"),
        ("name: x", "fleet.yaml:1: kind is missing"),
        ("kind: pod\nname: x", "fleet.yaml:1: kind is 'pod'"),
        (
            "kind: model\nname: x\nname: y",
            "fleet.yaml:3: not valid YAML: key 'name' is given twice",
        ),
        ("kind: model\nname: x", "fleet.yaml:1: model x: give exactly one of function"),
        (
            "kind: model\nname: x\nfunction: gone.py:f",
            "fleet.yaml:3: model x: function: there is no file",
        ),
        (
            "kind: model\nname: X y\nfunction: server.py:f",
            "fleet.yaml:2: model X y: name: ",
        ),
        (
            "kind: model\nname: x\nfunction: server.py:f\ngpu: 1",
            "fleet.yaml:4: model x: gpu: there is no such field; a model has name, version",
        ),
        (
            "kind: model\nname: x\nfunction: server.py:f\nresources:\n  memory_mib: lots",
            "fleet.yaml:5: model x: resources.memory_mib: Input should be a valid integer",
        ),
        ("\n\nkind: job\nname: j\nmodel: m", "fleet.yaml:5: job j: model: 'm' is neither declared"),
        ("kind: job\nname: j\nmodel: {a: 1}", "fleet.yaml:3: job j: model: names a model"),
        (
            "{kind: job, name: j, model: old, min_replicas: 4}",
            "fleet.yaml:1: job j: min_replicas 4 is above max_replicas 1",
        ),
        (
            "{kind: job, name: j, model: old}\n---\n{kind: job, name: j, model: old}",
            "fleet.yaml:3: job j: name: is declared twice",
        ),
    ],
)
def test_mistakes_name_file_line_and_field(folder: Path, text: str, message: str) -> None:
    old = ModelSpec(name="old", function="/srv/old.py:run")
    assert refusal(folder, text, old).startswith(message)


def test_a_file_that_cannot_be_read_says_why(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read .*none\.yaml: No such file"):
        read_manifest(folder / "none.yaml", lambda *_: None)


def test_files_of_a_model_in_a_container_are_those_of_its_image(tmp_path):
    (tmp_path / "serve").write_text("not the one in the image")
    text = (
        "kind: model\nname: a\nruntime: docker\nimage: a/b:1\nfunction: /app/model.py:f\n---\n"
        "kind: model\nname: b\nruntime: docker\nimage: a/b:1\ncontract: sagemaker\n"
        "command: [serve]\n"
    )
    first, second = read(tmp_path, text).models
    assert (first.function, second.command) == ("/app/model.py:f", ("serve",))


def test_what_a_job_asks_of_its_workers_is_read_and_a_mistake_in_it_has_its_line(folder):
    asks = "placement:\n  trusted: true\n  labels: {zone: eu}\n  apart: owners\n"
    text = f"kind: job\nname: chat\nmodel: chat\n{asks}"
    known = ModelSpec(name="chat", function="a.py:f")
    (job,) = read(folder, text, known).jobs
    assert job.placement == PlacementSpec(trusted=True, labels={"zone": "eu"}, apart="owners")
    refused = refusal(folder, text.replace("owners", "racks"), known)
    assert refused.startswith("fleet.yaml:7: job chat: placement.apart: ")

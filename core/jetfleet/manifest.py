"""Models and jobs declared in YAML: one document each, in one or more files.

    kind: model
    name: filetype
    function: filetype.py:identify      # relative to this file
    ---
    kind: job
    name: filetype
    model: filetype                     # or filetype:1; of this file, else of the registry
    concurrency: 2

The fields are those of ``ModelSpec`` and ``JobSpec``, so ``jetfleet apply`` has no language of its
own. Paths become absolute, because agents run elsewhere than the one who applies. ``{python}`` in a
command is the interpreter that reads the file; ``{port}`` is left for the agent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from jetfleet.errors import InvalidRequest
from jetfleet.specs import JobSpec, ModelSpec, RuntimeName

KINDS = ("model", "job")
Spec = TypeVar("Spec", ModelSpec, JobSpec)
FindModel = Callable[[str, str | None], ModelSpec | None]


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: what it declares, and where it stands for messages."""

    path: Path
    line: int
    kind: str
    fields: dict[str, Any]
    lines: dict[tuple[str, ...], int]

    def error(self, message: str, at: Sequence[str] = ()) -> InvalidRequest:
        """An error that names the file, the line of the field, and the declared thing."""
        where = next(
            (
                self.lines[key]
                for n in range(len(at), 0, -1)
                if (key := tuple(at[:n])) in self.lines
            ),
            self.line,
        )
        name = self.fields.get("name")
        subject = f"{self.kind} {name}" if isinstance(name, str) else self.kind
        field = ".".join(at)
        return InvalidRequest(
            f"{self.path}:{where}: {subject}: " + (f"{field}: " if field else "") + message,
            field=field or None,
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was declared, validated, in order."""

    models: tuple[ModelSpec, ...]
    jobs: tuple[JobSpec, ...]


def read_manifest(path: Path, find_model: FindModel, text: str | None = None) -> Manifest:
    """Read and validate a file.

    Args:
        path: its folder is what relative paths are relative to.
        find_model: (name, version or None for the newest) -> a model that is registered already.
        text: its content, where it does not come from the path (standard input).

    Raises:
        InvalidRequest: unreadable, not YAML, or a field is wrong; names file, line and field.
    """
    documents = list(parse(path, read_text(path) if text is None else text))
    if not documents:
        raise InvalidRequest(f"{path}: nothing is declared in it; see `jetfleet apply --help`")
    models = [_model(each) for each in documents if each.kind == "model"]
    jobs = [_job(each, models, find_model) for each in documents if each.kind == "job"]
    _refuse_twice(documents, models)
    return Manifest(tuple(models), tuple(jobs))


def parse(path: Path, text: str) -> Iterator[Document]:
    """The documents of a YAML text, empty ones left out."""
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            value = None if node is None else loader.construct_document(node)
            if node is not None and value is not None:
                yield _document(path, node, value)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidRequest(f"{where}: not valid YAML: {problem}") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word, not a list or mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_text(path: Path) -> str:
    """The text of a file. Raises InvalidRequest when it cannot be read, or is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text") from error


def _document(path: Path, node: yaml.Node, value: Any) -> Document:
    line = node.start_mark.line + 1
    if not isinstance(value, dict):
        raise InvalidRequest(f"{path}:{line}: a document is a mapping with kind: model or job")
    fields = {str(key): each for key, each in value.items()}
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        said = "kind is missing" if kind is None else f"kind is {kind!r}"
        raise InvalidRequest(f"{path}:{line}: {said}; a document says kind: model or kind: job")
    return Document(path, line, kind, fields, dict(_lines(node, ())))


def _lines(node: yaml.Node, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*at, str(key.value))
            yield place, key.start_mark.line + 1
            yield from _lines(value, place)


def _model(document: Document) -> ModelSpec:
    fields = dict(document.fields)
    folder = document.path.resolve().parent
    if isinstance(fields.get("version"), (int, float)):
        fields["version"] = str(fields["version"])  # `version: 1` is what people write
    if isinstance(fields.get("env"), dict):
        fields["env"] = {key: str(value) for key, value in fields["env"].items()}
    if fields.get("runtime") == RuntimeName.DOCKER:
        return _validated(document, ModelSpec, fields)  # its files are those of the image
    if isinstance(fields.get("function"), str):
        fields["function"] = _function(document, folder, fields["function"])
    if isinstance(fields.get("command"), list):
        fields["command"] = [_argument(folder, str(each)) for each in fields["command"]]
    return _validated(document, ModelSpec, fields)


def _function(document: Document, folder: Path, function: str) -> str:
    file, colon, name = function.rpartition(":")
    if not colon:
        return function  # ModelSpec says what is wrong with it
    absolute = (folder / file).resolve()
    if not absolute.is_file():
        raise document.error(f"there is no file {absolute}", ["function"])
    return f"{absolute}:{name}"


def _argument(folder: Path, argument: str) -> str:
    """An argument of a command: the interpreter, a file beside the YAML, or as it stands."""
    if argument == "{python}":
        return sys.executable
    beside = folder / argument
    return str(beside.resolve()) if argument and beside.is_file() else argument


def _job(document: Document, models: Sequence[ModelSpec], find_model: FindModel) -> JobSpec:
    reference = document.fields.get("model")
    if not isinstance(reference, str):
        raise document.error("names a model, as name or name:version", ["model"])
    name, _, version = reference.partition(":")
    here = [m for m in models if m.name == name and version in ("", m.version)]
    model = here[-1] if here else find_model(name, version or None)
    if model is None:
        raise document.error(
            f"{reference!r} is neither declared in this file nor registered", ["model"]
        )
    return _validated(document, JobSpec, {**document.fields, "model": model})


def _validated(document: Document, spec: type[Spec], fields: dict[str, Any]) -> Spec:
    try:
        return spec(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = (
                f"there is no such field; a {document.kind} has {', '.join(spec.model_fields)}"
            )
        at = [str(part) for part in first["loc"] if isinstance(part, str)]
        raise document.error(message, at) from error


def _refuse_twice(documents: Sequence[Document], models: Sequence[ModelSpec]) -> None:
    """The same job, or model version, declared twice would make the result depend on order."""
    refs = iter([model.ref for model in models])
    seen: set[tuple[str, str]] = set()
    for document in documents:
        name = next(refs) if document.kind == "model" else str(document.fields["name"])
        if (document.kind, name) in seen:
            raise document.error("is declared twice in this file", ["name"])
        seen.add((document.kind, name))

"""Putting the chunks of a streamed completion together into the whole that was not streamed."""

from __future__ import annotations

from typing import Any

_FIRST = ("id", "created", "model", "system_fingerprint")  # the rest: what was said last holds

Object = dict[str, Any]


class Misfit(Exception):
    """A chunk does not fit those before it: text that goes on as a list, for instance."""


class Assembly:
    """Chunks in, one ``chat.completion`` or ``text_completion`` object out."""

    def __init__(self, chat: bool) -> None:
        self._chat = chat
        self._top: Object = {}
        self._choices: dict[int, Object] = {}

    def add(self, chunk: Object) -> None:
        """Take in one chunk; what it lacks is left as it is. Raises Misfit."""
        try:
            self._add(chunk)
        except (AttributeError, LookupError, TypeError) as error:
            raise Misfit(str(error)) from error

    def _add(self, chunk: Object) -> None:
        for key, value in chunk.items():
            if key not in ("choices", "object") and value is not None:
                if key in _FIRST:
                    self._top.setdefault(key, value)
                else:
                    self._top[key] = value
        for part in _objects(chunk.get("choices")):
            self._add_choice(part)

    @property
    def finished(self) -> bool:
        """Whether every choice said why it ended."""
        return bool(self._choices) and all(
            choice["finish_reason"] is not None for choice in self._choices.values()
        )

    def so_far(self) -> Object:
        """What there is of the whole by now; chunks go on."""
        return {**self._top, "choices": list(self._choices.values())}

    def whole(self) -> Object:
        """The object that the server would have answered without streaming."""
        kind = "chat.completion" if self._chat else "text_completion"
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            _drop_indexes(choice)
        return {"object": kind, **self._top, "choices": choices}

    def _add_choice(self, part: Object) -> None:
        index = part.get("index") or 0
        if not isinstance(index, int):
            raise TypeError(f"the index of a choice is {index!r}")
        choice = self._choices.setdefault(index, self._new_choice(index))
        for key, value in part.items():
            if key == "delta" and isinstance(value, dict):
                self._merge(choice["message"], value)
            elif key == "text" and isinstance(value, str):
                choice["text"] += value
            elif key == "logprobs" and isinstance(value, dict):
                choice["logprobs"] = _joined(choice.get("logprobs"), value)
            elif key not in ("index", "delta", "message", "text") and value is not None:
                choice[key] = value

    def _new_choice(self, index: int) -> Object:
        if self._chat:
            message = {"role": "assistant", "content": None}
            return {"index": index, "message": message, "finish_reason": None}
        return {"index": index, "text": "", "finish_reason": None}

    def _merge(self, message: Object, delta: Object) -> None:
        """Text grows (content, reasoning, arguments, ...), objects and lists merge, by index."""
        for key, value in delta.items():
            if key in ("role", "id", "type"):
                message[key] = value or message.get(key)
            elif isinstance(value, str):
                message[key] = (message.get(key) or "") + value
            elif isinstance(value, dict):
                self._merge(message.setdefault(key, {}), value)
            elif isinstance(value, list):
                self._merge_list(message.setdefault(key, []), value)
            elif value is not None:
                message[key] = value

    def _merge_list(self, known: list[Any], parts: list[Any]) -> None:
        for part in parts:
            index = part.get("index") if isinstance(part, dict) else None
            same = (e for e in known if isinstance(e, dict) and e.get("index") == index)
            entry = next(same, None) if index is not None else None
            if entry is not None:
                self._merge(entry, part)
            elif isinstance(part, dict):
                known.append({})
                self._merge(known[-1], part)
            else:
                known.append(part)


def _objects(value: Any) -> list[Object]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _joined(known: Object | None, more: Object) -> Object:
    """Log probabilities: lists by token, one after the other."""
    result = dict(known or {})
    for key, value in more.items():
        before = result.get(key)
        both = isinstance(before, list) and isinstance(value, list)
        result[key] = [*before, *value] if both else value  # type: ignore[misc]  # see `both`
    return result


def _drop_indexes(choice: Object) -> None:
    """``index`` of a tool call only exists while streaming."""
    for call in _objects(choice.get("message", {}).get("tool_calls")):
        call.pop("index", None)

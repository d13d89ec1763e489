"""The raw door to NATS: one connection that heals, with stored publishes that survive healing.

nats-py reconnects by itself after a lost server, but closes for good on most server errors (an
expired credential among them). ``Connection`` dials again in that case too, restores its
subscriptions, and sends again what was not yet acknowledged under the same message id, so that
the broker drops what it already has.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.msg import Msg

from jetfleet import access
from jetfleet.credentials import CredentialsFile, CredentialSource
from jetfleet.errors import ApiError, BrokerUnavailable, NoResponders, WrongSequence
from jetfleet.fastlane import FastNats
from jetfleet.stores import STORE_TIMEOUT_S, Stored, Stores, api_error, header_block

logger = logging.getLogger("jetfleet.connection")

RECONNECT_WAIT_S = 0.2  # before the second try; doubled for each next one, up to
RECONNECT_MOST_S = 1.6
PING_INTERVAL_S = 10  # a half-open connection is noticed after two unanswered pings
NOT_FOUND = 404

Callback = Callable[[Msg], Awaitable[None] | None]
Hook = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Subscription:
    """A subscription that is restored when the connection is dialled anew."""

    subject: str
    queue: str
    callback: Callback
    connection: Connection
    handle: Any = None

    async def start(self) -> None:
        """Subscribe; a callback that is no coroutine function is called from the reader itself."""
        client = self.connection.nats
        if self.queue or inspect.iscoroutinefunction(self.callback):
            self.handle = await client.subscribe(self.subject, queue=self.queue, cb=self._call)
        else:
            self.handle = await client.subscribe_direct(self.subject, self._take)

    def _take(self, message: Msg) -> None:
        try:
            self.callback(message)
        except Exception:
            logger.exception("a message on %s could not be handled", message.subject)

    async def _call(self, message: Msg) -> None:
        try:
            result = self.callback(message)
            if inspect.isawaitable(result):
                await result
        except Exception:
            logger.exception("a message on %s could not be handled", message.subject)

    async def drain(self) -> None:
        """Unsubscribe; what the broker had sent until it heard of that is still handled."""
        self._forget()
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self.handle.drain()

    async def stop(self) -> None:
        """Unsubscribe; what was delivered already is still handled."""
        self._forget()
        with contextlib.suppress(nats.errors.Error, OSError):
            await self.handle.unsubscribe()

    def _forget(self) -> None:
        if self in self.connection.subscriptions:
            self.connection.subscriptions.remove(self)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection; see ``open``."""

    url: str
    credentials: CredentialSource
    user: str
    name: str
    nats: FastNats = field(init=False)
    on_reconnect: list[Hook] = field(default_factory=list)
    subscriptions: list[Subscription] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)  # the server's last refusals, newest last
    stores: Stores = field(init=False)
    _closing: bool = False
    _said: str = ""  # the last trouble that was logged; the same again is not
    _redial: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, url: str, credentials: Path | CredentialSource, *, user: str, name: str
    ) -> Connection:
        """Connect, waiting for the broker as long as it takes (bound it with a timeout).

        Args:
            url: ``nats://``, ``tls://``, ``ws://`` or ``wss://``.
            credentials: a ``.creds`` file, or a source of tokens.
            user: owner of the private inbox prefix (``access.inbox``).
            name: shown in the broker's monitoring.

        Raises:
            BrokerUnavailable: the credentials file is missing, or the broker refuses it.
        """
        if isinstance(credentials, Path):
            if not credentials.exists():
                raise BrokerUnavailable(
                    f"no credentials at {credentials}: start `jetfleet up` on this data directory "
                    "first, or point JETFLEET_CREDENTIALS at a .creds file"
                )
            credentials = CredentialsFile(credentials)
        self = cls(url, credentials, user, name)
        prefix = f"{access.inbox(user)}.a{secrets.token_hex(8)}."
        self.stores = Stores(lambda: self.nats, prefix)
        await self._dial()
        try:
            await self.subscribe(prefix + "*", self.stores.on_ack)
        except BaseException as error:  # whoever waited for us has nothing that it could close
            await self.close()
            if isinstance(error, BrokerUnavailable):
                raise self._refusal(str(error.__cause__)) from error
            raise
        return self

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        return bool(self.nats.is_connected)

    async def _dial(self) -> None:
        """Connect a new client; nats-py tries for ever, we only while it makes sense."""
        client = FastNats()
        refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def on_error(error: Exception) -> None:
            if "authorization violation" in str(error).lower() and not refused.done():
                refused.set_result(str(error))
            if not client.is_connected:
                wait = client.options["reconnect_time_wait"]
                client.options["reconnect_time_wait"] = min(wait * 2, RECONNECT_MOST_S)
            await self._on_error(error)

        connecting = asyncio.ensure_future(client.connect(**self._options(on_error)))
        try:
            await asyncio.wait({connecting, refused}, return_when=asyncio.FIRST_COMPLETED)
            if refused.done():
                raise self._refusal(refused.result())
            connecting.result()
        except BaseException:
            await client.abandon(connecting)
            raise
        self.nats = client

    def _refusal(self, why: str) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"the broker at {self.url} refuses these credentials ({why}); are they of this "
            "installation, and not expired?"
        )

    def _options(self, on_error: Callable[[Exception], Awaitable[None]]) -> dict[str, Any]:
        return {
            "servers": self.url,
            "name": self.name,
            "user_jwt_cb": lambda: bytearray(self.credentials.token().encode()),
            "signature_cb": self.credentials.sign,
            "inbox_prefix": access.inbox(self.user).encode(),
            "reconnect_time_wait": RECONNECT_WAIT_S,
            "max_reconnect_attempts": -1,
            "ping_interval": PING_INTERVAL_S,
            "error_cb": on_error,
            # Ours are made of validated names; what the broker hands us it has validated.
            "skip_subject_validation": True,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
        }

    async def close(self) -> None:
        """Flush and close; waiting stores end with BrokerUnavailable."""
        self._closing = True
        if self._redial is not None:
            self._redial.cancel()
            await asyncio.gather(self._redial, return_exceptions=True)
        with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
            async with asyncio.timeout(2):
                await self.nats.flush()
        await self.nats.end()
        self.stores.close()

    # -- publishing

    async def publish(self, subject: str, body: bytes, *, reply: str = "") -> None:
        """See ``send``."""
        self.send(subject, body, reply)

    def send(self, subject: str, body: bytes, reply: str = "") -> None:
        """Publish without waiting for anybody; lost when the connection is.

        The subject must be made of validated names: it is not checked again.

        Raises:
            BrokerUnavailable: the connection is closed for good, or its buffer is full.
        """
        try:
            self.nats.publish_trusted(subject, body, reply)
        except nats.errors.Error as error:
            raise BrokerUnavailable(f"cannot publish to {subject}: {error}") from error

    async def store(
        self,
        subject: str,
        body: bytes,
        *,
        msg_id: str | None = None,
        expect: tuple[int, str] | None = None,
        trace: str | None = None,
        timeout_s: float | None = STORE_TIMEOUT_S,
    ) -> Stored:
        """Append to a stream; returns when the broker has it.

        Args:
            msg_id: makes it idempotent within the stream's duplicate window.
            expect: ``(sequence, filter)``: refuse unless the last message on ``filter`` has it.
            trace: W3C traceparent, repeated as a header for tools that read only headers.
            timeout_s: None waits until the broker answers, over reconnects.

        Raises:
            BrokerUnavailable: no answer in time; with a ``msg_id`` it may be repeated safely.
            WrongSequence: ``expect`` does not hold.
            LogFull: the stream refuses because it, or its disk, is full.
            ApiError: refused for another reason.
        """
        block = header_block(msg_id, trace, expect)
        return await self.stores.store(subject, body, block, timeout_s, again=msg_id is not None)

    # -- asking

    async def request(self, subject: str, body: bytes, timeout_s: float = 5.0) -> bytes:
        """One request, one reply: its body.

        Raises:
            NoResponders: nobody listens.
            BrokerUnavailable: no reply in time.
        """
        return bytes((await self.ask(subject, body, timeout_s)).data)

    async def ask(self, subject: str, body: bytes = b"", timeout_s: float = 5.0) -> Msg:
        """One request, one reply: the whole message. Raises as ``request`` does."""
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        try:
            reply = await self.nats.request(subject, body, timeout=timeout_s)
        except nats.errors.NoRespondersError as error:
            raise NoResponders(f"nobody answers {subject}") from error
        except (TimeoutError, nats.errors.Error) as error:
            raise BrokerUnavailable(
                f"no answer to {subject} within {timeout_s} s: {error}"
            ) from error
        # Until Python 3.12, `asyncio.wait_for` inside forgets a cancellation that comes with the
        # reply (python/cpython#86296): a process would never hear that it shall stop.
        if task is not None and task.cancelling() > cancelled:
            raise asyncio.CancelledError
        return reply

    async def api(
        self, verb: str, body: Mapping[str, Any] | None = None, timeout_s: float = 5.0
    ) -> dict[str, Any]:
        """A request to the JetStream API (``$JS.API.<verb>``).

        Raises:
            ApiError: refused; ``.status`` 404 when the stream or consumer does not exist.
            BrokerUnavailable: no reply in time, or JetStream is not up.
        """
        payload = json.dumps(body).encode() if body else b""
        try:
            raw = await self.request(f"$JS.API.{verb}", payload, timeout_s)
        except NoResponders as error:
            raise BrokerUnavailable("JetStream is not up yet; try again") from error
        answer: dict[str, Any] = json.loads(raw)
        if "error" in answer:
            raise api_error(answer["error"])
        return answer

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call ``callback`` for every message. Raises BrokerUnavailable while it is closed."""
        entry = Subscription(subject, queue, callback, self)
        try:
            await entry.start()
        except nats.errors.Error as error:
            raise BrokerUnavailable(f"cannot subscribe to {subject}: {error}") from error
        self.subscriptions.append(entry)
        return entry

    async def flush(self) -> None:
        """Return when the broker has processed everything sent so far."""
        try:
            await self.nats.flush(timeout=5)
        except (TimeoutError, nats.errors.Error) as error:
            raise BrokerUnavailable(f"the broker does not answer: {error}") from error

    # -- healing

    async def refresh(self) -> None:
        """Reconnect now, e.g. to present a renewed credential before the old one ends."""
        await self.nats.force_reconnect()

    async def _on_error(self, error: Exception) -> None:
        text = str(error)
        if "ermissions violation" in text:
            self.denied = [*self.denied[-19:], text]
            logger.warning("%s: the broker refused: %s", self.name, text)
        elif not self._closing:
            self._trouble(text or type(error).__name__)

    def _trouble(self, text: str) -> None:
        """Log what keeps us away, once until it changes."""
        if text != self._said:
            self._said = text
            logger.info("%s: %s (%s)", self.name, text, self.url)

    async def _on_reconnected(self) -> None:
        self.nats.options["reconnect_time_wait"] = RECONNECT_WAIT_S
        self._restored("connected again")

    def _restored(self, how: str) -> None:
        logger.info("%s: %s", self.name, how)
        self._said = ""
        self.stores.send_again()
        for hook in list(self.on_reconnect):
            self.spawn(hook())

    async def _on_closed(self) -> None:
        if not self._closing and (self._redial is None or self._redial.done()):
            self._redial = asyncio.create_task(self._dial_again())

    async def _dial_again(self) -> None:
        wait = RECONNECT_WAIT_S
        while not self._closing:
            await asyncio.sleep(wait)
            try:
                await self._dial()
                for entry in list(self.subscriptions):
                    await entry.start()
            except (TimeoutError, BrokerUnavailable, nats.errors.Error, OSError) as error:
                self._trouble(f"cannot connect: {error}")
                await self.nats.end()  # it may be a new one, which took not all of ours
                wait = min(wait * 2, RECONNECT_MOST_S)
                continue
            self._restored("dialled anew")
            return

    def spawn(self, work: Awaitable[None]) -> None:
        """Run something in the background; a failure is logged, not lost."""
        task = asyncio.ensure_future(work)
        _TASKS.add(task)
        task.add_done_callback(_finished)


_TASKS: set[asyncio.Future[None]] = set()  # keeps references, so that tasks are not collected early


def _finished(task: asyncio.Future[None]) -> None:
    _TASKS.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a background task failed: %s", error, exc_info=error)


__all__ = [
    "NOT_FOUND", "ApiError", "Connection", "CredentialSource", "NoResponders", "Stored",
    "Subscription", "WrongSequence",
]  # fmt: skip

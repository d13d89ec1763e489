"""A worker that comes with a join token: gets credentials for a key of its own, and renews them.

In ``folder``: ``<name>.nk`` is the worker's key, made here and never sent; ``<name>.creds`` its
present credentials; ``<name>.json`` until when they hold, and the settings that the fleet told it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetfleet import access, joining, jwt, subjects
from jetfleet.connection import Connection
from jetfleet.errors import BrokerUnavailable, NoResponders, StartupError
from jetfleet.joining import JoinToken
from jetfleet.secrets import write
from jetfleet.settings import Settings
from jetfleet_agent.links import RENEW_AT

logger = logging.getLogger("jetfleet.joining")
ASK_S = 5.0
RETRY_S, RETRY_MOST_S = 0.2, 5.0
LOOK_S = 2.0  # how often the clock is looked at: a machine that slept has missed its timers


class JoinRefused(StartupError):
    """The fleet does not let this worker in."""

    code = "join_refused"


class _NotRenewed(Exception):
    """The conductor gives no further credentials; the message says why."""


@dataclass(slots=True, eq=False)
class Membership:
    """A worker's place in a fleet that it joined with a token; see the module.

    Args:
        url: the broker, as it is reached from here.
        token: None: only what is stored from before can be used.
    """

    url: str
    name: str
    folder: Path
    token: JoinToken | None
    refused: str = ""  # why it may not go on, once that is so
    _expires_at: float = 0.0
    _life_s: float = 0.0
    _settings: dict[str, Any] = field(default_factory=dict)

    @property
    def credentials(self) -> Path:
        return self.folder / f"{self.name}.creds"

    async def enter(self, settings: Settings) -> Settings:
        """Have credentials that hold, and return the settings with what the fleet says of itself.

        Waits for broker and conductor as long as it takes. Raises JoinRefused.
        """
        if not self._stored():
            await self._exchange()
        told = {name: self._settings[name] for name in joining.SETTINGS if name in self._settings}
        return settings.model_copy(update={**told, "nats_url": self.url})

    async def connect(self) -> Connection:
        """The worker's own connection. Raises JoinRefused."""
        try:
            return await self._open()
        except BrokerUnavailable as error:
            if self.token is None:
                raise JoinRefused(f"{error} Give --token to join anew.") from error
        logger.info("what is stored is refused; joining anew")
        await self._exchange()
        try:
            return await self._open()
        except BrokerUnavailable as error:  # the conductor signs with keys of somewhere else
            raise JoinRefused(str(error)) from error

    async def _open(self) -> Connection:
        return await Connection.open(
            self.url, self.credentials, user=self.name, name=f"worker-{self.name}"
        )

    async def keep(self, connection: Connection, leave: Callable[[str], None]) -> None:
        """Renew the credentials at 70% of their life, for ever; ``leave`` when that is refused."""
        while True:
            due = self._expires_at - self._life_s * (1 - RENEW_AT)
            wait = due - time.time()
            if wait > 0:
                await asyncio.sleep(min(wait, LOOK_S))
                continue
            try:
                await self._renew(connection)
                continue
            except (JoinRefused, _NotRenewed) as error:
                self.refused = str(error)
                logger.error("! leaving: %s", error)
                leave(f"no further credentials: {error}")
                return
            except (NoResponders, BrokerUnavailable) as error:
                logger.debug("not renewed yet: %s", error)
            except Exception:  # a full disk, say
                logger.exception("! not renewed yet")
            await asyncio.sleep(min(RETRY_MOST_S, self._life_s / 20))

    async def _renew(self, connection: Connection) -> None:
        if time.time() >= self._expires_at:
            if self.token is None:
                raise _NotRenewed("they ended while the fleet could not be reached")
            await self._exchange()  # the broken connection reads them when it dials again
            return
        request = json.dumps({"renew": True}).encode()
        subject = subjects.ask_credentials(self.name)
        answer = json.loads(await connection.request(subject, request, ASK_S))
        if "error" in answer:
            raise _NotRenewed(answer["error"])
        self._store(answer)
        await connection.refresh()
        logger.debug("credentials renewed for %.0f s", self._life_s)

    # -- joining

    async def _exchange(self) -> None:
        """Credentials for the token. Raises JoinRefused."""
        if self.token is None:
            raise JoinRefused(
                f"{self.name} has no credentials that hold; make a token with `jetfleet worker "
                "token` where the fleet's keys are, and give it with --token or JETFLEET_JOIN_TOKEN"
            )
        terms = self.token.terms
        request = json.dumps(
            {
                "token": self.token.jwt_text,
                "name": self.name,
                "public_key": jwt.public_key(self._seed()),
                "proof": jwt.sign_nonce(
                    self._seed(), joining.proof_text(terms.token, self.name)
                ).decode(),
            }
        ).encode()
        user = access.join_user(terms.token)
        try:
            connection = await Connection.open(self.url, self.token, user=user, name=user)
        except BrokerUnavailable as error:
            late = terms.expires_at <= time.time()
            why = "it has expired" if late else "is it of this installation?"
            raise JoinRefused(f"the broker at {self.url} refuses the join token: {why}") from error
        try:
            answer = await _answer(connection, subjects.ask_join(terms.token), request)
        finally:
            await connection.close()
        if "error" in answer:
            raise JoinRefused(answer["error"])
        self._settings = answer["settings"]
        self._store(answer)
        logger.info("let in as %s; credentials hold for %.0f s", self.name, self._life_s)

    # -- what is kept

    def _seed(self) -> bytes:
        """The worker's own key, made when missing."""
        path = self.folder / f"{self.name}.nk"
        if not path.exists():
            write(path, jwt.new_seed("user").decode())
        return path.read_text().strip().encode()

    def _store(self, answer: dict[str, Any]) -> None:
        life_s = float(answer["life_s"])
        expires_at = time.time() + life_s
        write(self.credentials, jwt.credentials_text(answer["token"], self._seed()))
        facts = {
            "expires_at": expires_at,
            "life_s": life_s,
            "token": None if self.token is None else self.token.terms.token,
            "settings": self._settings,
        }
        write(self._facts, json.dumps(facts))
        self._expires_at, self._life_s = expires_at, life_s  # now that they are there to be used

    @property
    def _facts(self) -> Path:
        return self.folder / f"{self.name}.json"

    def _stored(self) -> bool:
        """Whether what is kept from before still holds, and is not of another token."""
        try:
            facts = json.loads(self._facts.read_text())
            self._expires_at, self._life_s = float(facts["expires_at"]), float(facts["life_s"])
            self._settings, token = dict(facts["settings"]), facts["token"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        another = self.token is not None and token not in (None, self.token.terms.token)
        return self.credentials.exists() and time.time() < self._expires_at and not another


async def _answer(connection: Connection, subject: str, request: bytes) -> dict[str, Any]:
    """What a conductor answers, however long that takes."""
    wait, said = RETRY_S, False
    while True:
        try:
            answer: dict[str, Any] = json.loads(await connection.request(subject, request, ASK_S))
        except (NoResponders, BrokerUnavailable) as error:
            refused = next((text for text in reversed(connection.denied) if subject in text), "")
            if refused:
                raise JoinRefused(f"the broker refuses the join token: {refused}") from error
            if not said:
                logger.info("waiting for a conductor: %s", error)
            said = True
            await asyncio.sleep(wait)
            wait = min(wait * 2, RETRY_MOST_S)
        else:
            if answer.get("code") != "busy":
                return answer

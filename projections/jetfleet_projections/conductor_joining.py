"""Letting workers in: answers ``jf.join.<token>`` with credentials, and writes down who came.

The broker vouches that whoever asks holds a user that may ask for this token; the token's own JWT,
signed by the account of the workers, says on what terms. That somebody was let in is appended under
the condition that nothing was decided since: of two conductors, or two askers, one goes first and
the other is judged again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from jetfleet import access, joining, jwt, subjects
from jetfleet.connection import Connection, WrongSequence
from jetfleet.errors import LogFull, Unavailable
from jetfleet.events import WorkerAdmitted, encode
from jetfleet.fleet import FleetState, TokenState
from jetfleet.joining import BadToken, Terms
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp

logger = logging.getLogger("jetfleet.joining")
ATTEMPTS = 20
FOLD_S = 0.5  # longest wait for another's decision, before it is tried again
LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks to be let in, and with what; proven."""

    worker: str
    public_key: str
    terms: Terms


class NotAdmitted(Exception):
    """The asker is not let in; code and words are for the asker."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def read_request(token: str, body: bytes, account: str, now: int) -> Asker:
    """The request, with what can be checked without the log. Raises NotAdmitted.

    Args:
        token: the id in the subject, for which the broker vouches.
        account: public key of the workers' account, which signs tokens.
        now: Unix seconds.
    """
    try:
        request = json.loads(body)
        worker, key = str(request["name"]), str(request["public_key"])
        terms = joining.verified(str(request["token"]), account)
    except BadToken as error:
        raise NotAdmitted("bad_token", str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotAdmitted("invalid_request", "a request to join names token, name and key") from (
            error
        )
    if terms.token != token:
        raise NotAdmitted("bad_token", "this join token is not the one that was connected with")
    if terms.expires_at <= now:
        raise NotAdmitted("expired", "this join token has expired; ask for a new one")
    if not subjects.is_name(worker):
        raise NotAdmitted(
            "invalid_request", f"{worker!r} cannot name a worker: use a-z, 0-9, '-' and single '_'"
        )
    try:
        if not key.startswith("U"):
            raise ValueError("it is not the key of a user")
        jwt.verify(key, joining.proof_text(token, worker), str(request.get("proof", "")))
    except ValueError as error:
        raise NotAdmitted("bad_proof", f"the worker's key is not proven: {error}") from error
    return Asker(worker, key, terms)


def judge(fleet: FleetState, asker: Asker, now: datetime, life_s: float) -> bool:
    """Whether this must be written down; False: it is, the asker was let in before.

    ``life_s``: seconds that credentials of a worker live. Raises NotAdmitted.
    """
    terms, pair = asker.terms, (asker.worker, asker.public_key)
    token = fleet.tokens.get(terms.token, TokenState())
    if token.revoked:
        raise NotAdmitted("revoked", "this join token was revoked; ask for a new one")
    _name_is_free(fleet, asker, now, life_s)
    if pair not in token.admitted and len(token.admitted) >= terms.uses:
        raise NotAdmitted(
            "used_up",
            f"this join token was used {len(token.admitted)} times of {terms.uses}; "
            "ask for a new one",
        )
    held = fleet.admissions.get(asker.worker)
    return held is None or (held.public_key, held.token) != (asker.public_key, terms.token)


def _name_is_free(fleet: FleetState, asker: Asker, now: datetime, life_s: float) -> None:
    """A name belongs to a key while its worker is at work, and to an owner for ever.

    Its former holder may have credentials for a while yet, and whoever speaks under a name has the
    trust of the name: so it goes on to the same owner and trust only.
    """
    name, terms = asker.worker, asker.terms
    held, worker = fleet.admissions.get(name), fleet.workers.get(name)
    if held is None:
        if worker is None:
            return
        why = "a worker that joined without a token"
    elif held.public_key == asker.public_key:
        return
    elif worker is not None and worker.status in ("joined", "draining"):
        why = "a worker that is at work"
    elif (worker is None or worker.joined_seq < held.seq) and now < held.at + timedelta(
        seconds=life_s
    ):
        why = "a worker that is just joining"
    elif (held.trusted, held.owner) != (terms.trusted, terms.owner):
        why = "a worker of another owner or trust"
    else:
        return
    raise NotAdmitted("name_taken", f"the name {name} is taken by {why}; choose another --name")


@dataclass(slots=True, eq=False)
class JoinDesk:
    """Answers ``jf.join.*``; any number of conductors share the work."""

    connection: Connection
    settings: Settings
    secrets: Secrets
    fleet: Callable[[], FleetState]
    stamp: Stamp

    async def open(self) -> None:
        """Call when the log is folded: what was revoked must be known."""
        await self.connection.subscribe(
            subjects.ask_join(subjects.ANY), self._on_request, queue="conductor"
        )

    async def _on_request(self, message: Any) -> None:
        token = message.subject.rsplit(".", 1)[1]
        try:
            answer = await self._answer(token, message.data)
        except NotAdmitted as refused:
            logger.warning("! not let in (%s): %s", refused.code, refused)
            answer = {"error": str(refused), "code": refused.code}
        except (Unavailable, LogFull) as error:
            logger.info("cannot let anybody in now: %s", error)
            return  # whoever asks, asks again
        await self.connection.publish(message.reply, json.dumps(answer).encode())

    async def _answer(self, token: str, body: bytes) -> dict[str, Any]:
        seed = self.secrets.seed(access.WORKERS_ACCOUNT)
        asker = read_request(token, body, jwt.public_key(seed), int(time.time()))
        for _ in range(ATTEMPTS):
            fleet = self.fleet()
            life_s = self.settings.worker_life_s
            if not judge(fleet, asker, self.stamp.clock.now(), life_s):
                break
            try:
                await self._write_down(asker, fleet.control_seq)
            except WrongSequence:
                await self._folded(fleet)
                continue
            logger.info("→ %s is let in with token %s", asker.worker, token)
            break
        else:
            raise NotAdmitted("busy", "too much is being decided just now; try again")
        return {
            **worker_credentials(asker.worker, asker.public_key, seed, life_s),
            "settings": {name: getattr(self.settings, name) for name in joining.SETTINGS},
        }

    async def _write_down(self, asker: Asker, last: int) -> None:
        terms = asker.terms
        data = WorkerAdmitted.Data(
            worker=asker.worker,
            public_key=asker.public_key,
            token=terms.token,
            trusted=terms.trusted,
            owner=terms.owner,
            labels=dict(terms.labels),
        )
        event = WorkerAdmitted(**self.stamp(self.settings.tenant), data=data)
        await self.connection.store(
            subjects.admitted(asker.worker),
            encode(event),
            msg_id=event.id,
            expect=(last, subjects.ALL_CONTROL),
        )

    async def _folded(self, before: FleetState) -> None:
        """Wait until the fold has gone on; bounded, because it may have before we asked."""
        waited = 0.0
        while self.fleet().control_seq == before.control_seq and waited < FOLD_S:
            await asyncio.sleep(LOOK_S)
            waited += LOOK_S


def worker_credentials(
    worker: str, public_key: str, account_seed: bytes, life_s: float
) -> dict[str, Any]:
    """``{"token", "life_s"}``: a worker's own rights, bound to its key, for a limited time.

    A duration, because the worker's clock may be wrong.
    """
    now = int(time.time())
    token = access.user_token(
        access.worker_permissions(worker),
        account_seed=account_seed,
        user=public_key,
        name=f"worker-{worker}",
        issued_at=now,
        expires_at=now + int(life_s),
    )
    return {"token": token, "life_s": life_s}

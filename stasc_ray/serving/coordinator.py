"""What the replicas of an endpoint share: the pin, and turns to move to another version.

`Coordinator` is an actor of Serve's deployment: it comes with the endpoint, outlives each replica, and is
started again if it dies. Then it knows no more than the Serve config; the replicas, which tell it at each
meeting what they know, bring the newest pin back. `Link` is a replica's side.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

NAME = "coordinator"
TURN_S = 30.0
"""Without a word from a replica for so long its turn ends; and without the coordinator replicas move as they
like."""
MEETING_S = 5.0
"""For one meeting: a coordinator that hangs holds no replica."""


Pin = tuple[int, str | None]
"""How often the pin was moved (of two the higher is the newer), and the version; None: LATEST. A plain tuple,
since Serve sends the actor's class by value."""


class Coordinator:
    """The actor.

    Args:
        pinned: the pin at the start, from the Serve config.
    """

    def __init__(self, pinned: str | None = None) -> None:
        self._pin: Pin = (0, pinned)
        self._turn: tuple[str, float] | None = None

    def meet(self, replica: str, known: Pin | None, wants_turn: bool) -> tuple[Pin, bool]:
        """What a replica should know: the pin, and whether it may move now. One that asks for no turn gives
        its turn back.
        """
        if known and known[0] > self._pin[0]:
            self._pin = known
        now = time.monotonic()
        holder = self._turn[0] if self._turn and now < self._turn[1] else None
        if wants_turn and holder in (None, replica):
            self._turn = replica, now + TURN_S
            return self._pin, True
        if holder == replica:
            self._turn = None
        return self._pin, False

    def pin(self, version: str | None, known: Pin | None) -> Pin:
        """Hold the endpoint to a version; None: let it follow LATEST. `known` is what the caller heard."""
        self._pin = (max(self._pin[0], known[0] if known else 0) + 1, version)
        return self._pin


class Link:
    """A replica's side of the coordinator: what it heard last, also while the coordinator is away.

    Args:
        call: gets a method's name and its arguments.
    """

    def __init__(self, replica: str, call: Callable[..., Awaitable[Any]]) -> None:
        self._replica, self._call = replica, call
        self._heard: Pin | None = None
        self._heard_at = time.monotonic()
        self.may_move = False

    @property
    def pinned(self) -> str | None:
        """The version that the endpoint is held to."""
        return self._heard[1] if self._heard else None

    async def meet(self, *, wants_turn: bool) -> None:
        """Hear of the pin; ask for a turn, go on with it, or give it back."""
        try:
            async with asyncio.timeout(MEETING_S):
                heard, turn = await self._call("meet", self._replica, self._heard, wants_turn)
        except Exception:  # it is being started again, or out of reach: its absence must stop no replica
            self.may_move = wants_turn and time.monotonic() - self._heard_at > TURN_S
            return
        self._take(heard)
        self.may_move = turn

    async def pin(self, version: str | None) -> None:
        """Move the endpoint's pin.

        Raises:
            TimeoutError, Exception: what Ray raises where the coordinator is out of reach.
        """
        async with asyncio.timeout(MEETING_S):
            self._take(await self._call("pin", version, self._heard))

    def _take(self, heard: Pin) -> None:
        self._heard_at = time.monotonic()
        if self._heard is None or heard[0] >= self._heard[0]:
            self._heard = heard


def of_deployment(replica: str) -> Link:
    """A replica's link to the coordinator of its Serve deployment."""
    from ray import serve
    from ray.exceptions import RayActorError

    actor: Any = None

    async def call(method: str, *arguments: Any) -> Any:
        nonlocal actor
        if actor is None:
            actor = await asyncio.to_thread(serve.get_deployment_actor, NAME)
        try:
            return await getattr(actor, method).remote(*arguments)
        except RayActorError:  # the controller starts another one, which this handle does not know
            actor = None
            raise

    return Link(replica, call)


def alone(pinned: str | None = None) -> Link:
    """The link of a replica that is its endpoint's only one, in this process."""
    coordinator = Coordinator(pinned)

    async def call(method: str, *arguments: Any) -> Any:
        return getattr(coordinator, method)(*arguments)

    return Link("only", call)

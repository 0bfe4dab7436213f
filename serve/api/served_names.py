"""The names that a running service answers to: those it was started with, and those of a catalogue that changes."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from rlhf.errors import UserError
from rlhf.promotion.catalogue import Catalogue, ServedName, ServedPolicy, read_catalogue
from serve.api.api_errors import ApiError

REFRESH_S = 1.0
"""Seconds for which the catalogue is not read again."""
READ_S = 0.3
"""Longest time that a request waits for the catalogue to be read, in seconds."""
logger = logging.getLogger("ray.serve")

Prepare = Callable[[str, ServedPolicy], Awaitable[None]]
"""Loads a policy onto a base model; raises UserError if it does not load."""


class Chosen(NamedTuple):
    """The policy that answers a request."""

    name: str
    """Name of the model."""
    served: ServedName
    """All that is served under the name."""
    policy: ServedPolicy

    @property
    def standing(self) -> str:
        """`current`, `canary` or `previous`."""
        of_policy = {self.served.previous: "previous", self.served.canary: "canary", self.served.current: "current"}
        return of_policy[self.policy]


class ServedNames:
    """Rereads the catalogue as requests come. A new policy answers once it is loaded; until then the old one does.

    A catalogue or policy that cannot be read changes nothing and is logged.
    """

    def __init__(self, fixed: Catalogue, file: Path | None, bases: set[str], prepare: Prepare) -> None:
        self._fixed, self._file, self._bases, self._prepare = fixed.models, file, bases, prepare
        self._names = dict(fixed.models)
        self._ready: set[str] = set()
        self._checked = -REFRESH_S
        self._last_problem = ""
        self._refreshing: asyncio.Task[None] | None = None

    @property
    def names(self) -> dict[str, ServedName]:
        """The policies behind each name now; the first name is the default."""
        return self._names

    def find_base(self, model: ServedName) -> str | None:
        """The name under which a policy's base model is served; None if it is not, or for a base model itself."""
        if model.current.folder is None:
            return None
        others = ((name, other) for name, other in self._names.items() if other.base == model.base)
        return next((name for name, other in others if other.current.folder is None), None)

    def choose(self, name: str | None, version: str | None) -> Chosen:
        """Returns the name's current policy or its canary, at random by its share, or the version asked for.

        Raises ApiError 404 if the name or the version is not served.
        """
        name = next(iter(self._names)) if name is None else name
        served = self._names.get(name)
        if served is None:
            message = f"model {name!r} is not served here; {', '.join(map(repr, self._names))} can be asked for"
            raise ApiError(message, param="model", code="model_not_found", status=404)
        policy = choose_policy(served, random.random()) if version is None else find_policy(served, version)
        if policy is None:
            known = ", ".join(p.version for p in (served.current, served.canary, served.previous) if p is not None)
            message = f"policy version {version} of {name!r} is not served; {known} can be asked for"
            raise ApiError(message, param="policy_version", code="policy_version_not_found", status=404)
        return Chosen(name, served, policy)

    async def refresh(self) -> None:
        """Rereads the catalogue if it was not read for REFRESH_S.

        Waits up to READ_S, so that a rollback takes effect for the next request. Only the first call waits until
        new policies are loaded.
        """
        if self._file is None or time.monotonic() - self._checked < REFRESH_S:
            return
        is_first = self._checked < 0
        self._checked = time.monotonic()
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._reread())
        await asyncio.wait([self._refreshing], timeout=None if is_first else READ_S)

    async def _reread(self) -> None:
        assert self._file is not None
        try:
            found = (await asyncio.to_thread(read_catalogue, self._file)).models
        except UserError as error:
            self._report(f"catalogue: {error}")
            return
        names: dict[str, ServedName] = {}
        problems: list[str] = []
        for name, served in found.items():
            try:
                await self._check(name, served)
                names[name] = served
            except UserError as error:
                problems.append(f"{name}: {error}")
                if name in self._names:
                    names[name] = self._names[name]
        names |= {name: served for name, served in self._fixed.items() if name not in names}
        self._report("; ".join(problems))
        if names != self._names:
            logger.info("names changed", extra={"models": {n: s.current.version for n, s in names.items()}})
        self._names = names

    async def _check(self, name: str, served: ServedName) -> None:
        """Raises UserError if a policy of that name cannot answer."""
        if served.base not in self._bases:
            raise UserError(f"its base model {served.base} is not served; add it to the models of the service")
        for policy in (served.current, served.canary):
            if policy is not None and policy.folder is not None and policy.version not in self._ready:
                await self._prepare(served.base, policy)
                self._ready.add(policy.version)

    def _report(self, problem: str) -> None:
        if problem and problem != self._last_problem:
            logger.error("%s; what was served before goes on", problem)
        self._last_problem = problem


def choose_policy(served: ServedName, draw: float) -> ServedPolicy:
    """Returns the policy for a request whose `draw` is uniform in [0, 1)."""
    return served.canary if served.canary is not None and draw < served.canary_share else served.current


def find_policy(served: ServedName, version: str) -> ServedPolicy | None:
    """Returns the policy of a version, or of a generation if only its number is given."""
    policies = [p for p in (served.current, served.canary, served.previous) if p is not None]
    exact = [p for p in policies if p.version == version]
    return next(iter(exact + [p for p in policies if p.version.partition("-")[0] == version]), None)

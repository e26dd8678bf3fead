"""The machine that agent units share: which units there are, and what each of them says.

Two principals on one machine have an agent unit each, of one application or of two, but the
machine has one agent. So each unit leaves its *claim* in a folder of the machine: what it knows
and wants. From the claims every unit draws the same conclusions, whichever came first: whose
configuration holds, whose workload is installed, and who is the last one to go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turku_charm.api_relation import write_if_changed
from turku_core.agent.locks import held
from turku_core.agent.settings import Locations
from turku_core.configuration import ensure_private_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stated:
    """What one place says is to be backed up, as far as it is valid.

    Attributes:
        label: The place in words, such as ``relation sources of postgresql/0``.
        sources: By name, each in the form of ``sources.d``.
    """

    label: str
    sources: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Claim:
    """What one agent unit knows and wants.

    Attributes:
        unit, application: The agent unit and its application.
        since: When it came to the machine, ISO 8601.
        release: The version of turku-core that its charm carries.
        adopted: When it came or was last upgraded, ISO 8601.
        access: The API's side of the relation `api`, as it stood in the databag; None without a
            relation.
        secret: The registration key that goes with it.
        values: What the charm adds to the agent's configuration.
        metrics_listen: Where metrics are to be had; None when this unit's principal wants none.
        places: What each of its places says, by a key of the place.
    """

    unit: str
    application: str
    since: str
    release: str
    adopted: str
    access: Mapping[str, str] | None = None
    secret: str | None = field(default=None, repr=False)
    values: Mapping[str, Any] = field(default_factory=dict)
    metrics_listen: str | None = None
    places: Mapping[str, Stated] = field(default_factory=dict)

    @property
    def file_stem(self) -> str:
        """The unit's name as part of a file's name."""
        return self.unit.replace("/", "-")

    def to_json(self) -> str:
        """Return it as its file holds it."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Claim:
        """Read it back. Another revision of the charm may have written more, or less."""
        values = json.loads(text)
        known = {each.name for each in dataclasses.fields(cls)}
        places = {key: Stated(**place) for key, place in values.pop("places", {}).items()}
        return cls(**{key: values[key] for key in known & values.keys()}, places=places)


class Machine:
    """The claims on one machine. Whoever reads them to act on them holds the lock.

    Args:
        root: What all paths are below; ``/`` on a real machine.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = Locations(root).state / "units"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody else act on the machine meanwhile: Juju runs actions beside hooks."""
        ensure_private_folder(Locations(self._root).state)
        ensure_private_folder(self.folder)
        with held(self.folder / ".lock"):
            yield

    def claims(self) -> list[Claim]:
        """Return the claims of the units that are there, the oldest first."""
        return sorted(
            (claim for claim in map(_read, self._files()) if self._is_there(claim)),
            key=lambda claim: (claim.since, claim.unit),
        )

    def save(self, claim: Claim) -> None:
        """Leave a claim, in the place of the unit's former one."""
        write_if_changed(self._file(claim), claim.to_json(), 0o600)

    def drop(self, claim: Claim) -> None:
        """Take a claim back."""
        self._file(claim).unlink(missing_ok=True)

    def gone(self) -> list[Claim]:
        """Return the claims of units that were removed by force, without a hook of theirs."""
        return [claim for claim in map(_read, self._files()) if not self._is_there(claim)]

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.claim"))

    def _file(self, claim: Claim) -> Path:
        return self.folder / f"{claim.file_stem}.claim"

    def _is_there(self, claim: Claim) -> bool:
        """Say whether Juju still has the unit here, as far as one can tell from its folders."""
        agents = self._root / "var/lib/juju/agents"
        return not agents.is_dir() or (agents / f"unit-{claim.file_stem}").is_dir()


def _read(path: Path) -> Claim:
    """Read a claim. A damaged one still says that its unit is there, which renews it."""
    try:
        return Claim.from_json(path.read_text("utf-8"))
    except (ValueError, TypeError, AttributeError) as error:
        logger.warning("%s can't be read: %s", path, error)
        application, _, number = path.stem.rpartition("-")
        return Claim(f"{application}/{number}", application, since="", release="", adopted="")


def speaker(claims: Sequence[Claim]) -> Claim | None:
    """Return the claim whose API and names hold: the oldest of those that have both."""
    return next((claim for claim in claims if claim.access and claim.values), None)


def carrier(claims: Sequence[Claim]) -> Claim:
    """Return the claim whose workload is to be installed: the newest version's.

    Of one version's, the one that was deployed or upgraded last. So units of different revisions
    don't take turns, and a machine's only unit gets what its operator gave it, older or newer.
    """
    return max(claims, key=lambda claim: (_release(claim.release), claim.adopted, claim.unit))


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))

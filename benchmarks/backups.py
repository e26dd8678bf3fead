"""Backups and restores, beside bare rsync over ssh of the same tree through the same sshd."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Row
from benchmarks.timing import measure
from benchmarks.tree import change_one_percent, make_tree
from turku_core.local.layout import distribution_program
from turku_core.local.turku import LocalTurku, Machine

ROUNDS = 4
_SOURCE = "tree"
_ALLOWANCE_SECONDS = 0.5

Say = Callable[[str], None]


class BareRsync:
    """rsync -a over ssh, as somebody would type it, with a key of its own at the same sshd."""

    def __init__(self, turku: LocalTurku) -> None:
        """Make the key and let it in."""
        self._running = turku.running
        self._key = turku.layout.sshd / "bare_rsync_key"
        self._known_hosts = turku.layout.sshd / "bare_rsync_known_hosts"
        keygen = distribution_program("ssh-keygen", "openssh-client")
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(self._key)], check=True)
        public = self._key.with_suffix(".pub").read_text("ascii")
        # The private sshd lets root run forced commands only; this one runs what is asked for.
        allowed = f'restrict,command="exec $SSH_ORIGINAL_COMMAND" {public}'
        turku.layout.own_authorized_keys.write_text(allowed, "ascii")
        host_key = (turku.layout.sshd / "ssh_host_ed25519_key.pub").read_text("ascii")
        self._known_hosts.write_text(f"[127.0.0.1]:{self._running.ssh_port} {host_key}", "ascii")

    def command(self, origin: str, target: str) -> list[str]:
        """Return the command; the remote end is written as ``:PATH``."""
        ssh = (
            f"ssh -F none -p {self._running.ssh_port} -i {self._key} -o BatchMode=yes "
            f"-o IdentitiesOnly=yes -o UserKnownHostsFile={self._known_hosts}"
        )
        login = f"{self._running.ssh_user}@127.0.0.1"
        ends = [f"{login}{end}" if end.startswith(":") else end for end in (origin, target)]
        return ["rsync", "-a", "-e", ssh, *ends]


class Measurements:
    """The seconds of every round, by what was measured and by whom."""

    def __init__(self, settle: Callable[[], None]) -> None:
        """Begin with nothing; `settle` waits until nothing goes on in the background."""
        self._settle = settle
        self.ours: dict[str, list[float]] = {}
        self.bare: dict[str, list[float]] = {}

    def side_by_side(
        self, what: str, ours: list[str], bare: list[str], *, ours_first: bool, say: Say
    ) -> None:
        """Measure both, one after the other."""
        pair = [(self.ours, "ours", ours), (self.bare, "bare rsync", bare)]
        for seconds, who, command in pair if ours_first else reversed(pair):
            took = measure(command).seconds
            self._settle()
            seconds.setdefault(what, []).append(took)
            say(f"{what}, {who}: {took:.2f} s")


def measure_backups(turku: LocalTurku, folder: Path, say: Say) -> list[Row]:
    """Measure a first backup, one of an unchanged and of a changed tree, and a restore.

    Each round is a new machine with a new source. Who goes first alternates, and snapshots are
    made between the measurements: they are not what a machine is held for.
    """
    tree, copies = folder / "tree", folder / "copies"
    copies.mkdir()
    say("making a tree of 30,000 small files and 1 GiB in large ones")
    make_tree(tree)
    rsync = BareRsync(turku)
    measurements = Measurements(turku.wait_until_committed)
    for turn in range(ROUNDS):
        machine = turku.add_machine(
            f"bench-{turn}", {_SOURCE: {"path": str(tree), "frequency": "daily"}}
        )
        _measure_round(turku, machine, tree, copies, rsync, measurements, turn, say)
    return _rows(measurements)


def _measure_round(
    turku: LocalTurku,
    machine: Machine,
    tree: Path,
    copies: Path,
    rsync: BareRsync,
    measurements: Measurements,
    turn: int,
    say: Say,
) -> None:
    copy, restored, plain = copies / "bare", copies / "restored", copies / "plain"
    ours = machine.command("turku-agent-ping")
    bare = rsync.command(f"{tree}/", f":{copy}")

    def side_by_side(what: str, ours: list[str], bare: list[str]) -> None:
        measurements.side_by_side(what, ours, bare, ours_first=turn % 2 == 0, say=say)

    side_by_side("first backup", ours, bare)
    turku.backup_now(machine)
    side_by_side("unchanged", ours, bare)
    change_one_percent(tree, turn + 1)
    turku.backup_now(machine)
    side_by_side("1 % changed", ours, bare)
    restore = ("--restore", "--source", _SOURCE, "--snapshot", "latest", "--target", str(restored))
    side_by_side(
        "restore of everything",
        machine.command("turku-agent-ping", *restore),
        rsync.command(f":{copy}/", str(plain)),
    )
    for used in (copy, restored, plain):
        shutil.rmtree(used)


def _rows(measurements: Measurements) -> list[Row]:
    rows = []
    for what, allowance in (
        ("first backup", 0.0),
        ("unchanged", _ALLOWANCE_SECONDS),
        ("1 % changed", _ALLOWANCE_SECONDS),
        ("restore of everything", 0.0),
    ):
        runs, other_runs = measurements.ours[what], measurements.bare[what]
        rows.append(Row.ratio(what, runs, other_runs, bound=1.5, allowance=allowance))
    return rows

"""Whatever the network does, sessions end, slots come back, and the next run is clean."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.bad_api import SPOILS
from tests.faults.site import PLAIN, QUICK, SOURCE, Site, running_site
from tests.faults.tally import FULL, SEED, Tally, times
from tests.faults.wire import NAME

pytestmark = pytest.mark.needs_root

QUICK_SECONDS = 60.0
"""In which a program has to end, with keepalives every second: ten times what it takes."""

REAL_SECONDS = 240.0
"""The same with the keepalives of every day: 60 s, 90 s for the tunnel, and OpenSSH 9.2's 150 s."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(random.Random(SEED), QUICK) as running:
        running.clean_run()
        yield running


def session_bytes(site: Site) -> int:
    """Return how many bytes a session's connection takes, with what it brings."""
    if site.session_bytes:
        return site.session_bytes
    site.wire.count(site.ssh_port)
    site.change()
    site.make_due()
    assert site.run("turku-agent-ping", seconds=QUICK_SECONDS).exit_code == 0
    count = site.wire.counted()
    site.turku.wait_until_committed(60)
    site.session_bytes = count
    return count


def disturbed_run(site: Site, seconds: float) -> int:
    """Run a backup while something is wrong, and return the exit code; then all must be well."""
    site.later()
    state = site.change()
    site.make_due()
    done = site.run("turku-agent-ping", seconds=seconds)
    site.settle(seconds)
    site.wire.heal()
    site.turku.wait_until_committed(60)
    if done.exit_code == 0:
        assert state in site.held().values(), f"said to be done, and isn't kept: {done}"
    return done.exit_code


@contextlib.contextmanager
def healed_after(site: Site, seconds: float) -> Iterator[None]:
    """Let everything through again some time from now, at the latest when the context ends."""
    timer = threading.Timer(seconds, site.wire.heal)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def finish(site: Site, tally: Tally, what: str, count: int) -> None:
    """See that a clean run follows, and that nothing was lost."""
    site.clean_run()
    # What lies there is compared each time; that it also comes back, in full.
    lost = site.count_lost() + (site.restore() if FULL else 0)
    tally.note(what, times=count, lost=lost)
    assert lost == 0


@pytest.mark.parametrize(
    "fault", ["cut", "stall to", "stall both", "stall from"] if FULL else ["cut", "stall to"]
)
def test_a_connection_that_breaks_at_any_byte_loses_nothing(
    site: Site, tally: Tally, dice: random.Random, fault: str
) -> None:
    whole = session_bytes(site)
    count = times(1, 25)
    broken = 0
    for number in range(count):
        # In full, all over the session; else in the midst of the transfer.
        at = int(whole * ((number + dice.random()) / count if FULL else dice.uniform(0.3, 0.9)))
        if fault == "cut":
            site.wire.cut_after(site.ssh_port, at)
        else:
            site.wire.stall_after(site.ssh_port, at, fault.removeprefix("stall "))
        # A stall while it logs in is ended by the tunnel's deadline of 90 s.
        code = disturbed_run(site, QUICK_SECONDS if fault == "cut" else REAL_SECONDS)
        broken += code != 0
        if FULL:
            site.clean_run()
            assert site.count_lost() == 0
    assert broken, "the fault struck nothing"
    finish(site, tally, f"SSH connection: {fault}, at any byte of the session", count)


@pytest.mark.only_in_full
def test_a_stall_that_passes_is_waited_for(site: Site, tally: Tally, dice: random.Random) -> None:
    whole = session_bytes(site)
    count = times(1, 10)
    for _ in range(count):
        site.later()
        state = site.change()
        site.make_due()
        site.wire.stall_after(site.ssh_port, int(whole * dice.uniform(0.3, 0.9)))
        with healed_after(site, 1.0):
            done = site.run("turku-agent-ping", seconds=QUICK_SECONDS)
        assert done.exit_code == 0, (done, site.log())
        site.turku.wait_until_committed(60)
        assert state in site.held().values()
    finish(site, tally, "SSH connection: stalls for a second and goes on", count)


@pytest.mark.only_in_full
@pytest.mark.parametrize("fault", ["100 kbit/s", "20 % loss"])
def test_a_bad_line_only_takes_longer(tally: Tally, dice: random.Random, fault: str) -> None:
    with running_site(dice, PLAIN) as site:
        site.clean_run()
        for _ in range(10):
            site.later()
            # What a session costs beside its files is about 60 kB, twice 5 s.
            state = site.change(size=8_000 if fault == "100 kbit/s" else 150_000)
            site.make_due()
            if fault == "100 kbit/s":
                site.wire.slow("100kbit")
            else:
                site.wire.lose(20, (site.ssh_port, site.api.port))
            done = site.run("turku-agent-ping", seconds=REAL_SECONDS)
            site.wire.heal()
            site.settle(REAL_SECONDS)
            assert done.exit_code == 0, (done, site.log())
            site.turku.wait_until_committed(60)
            assert state in site.held().values()
        finish(site, tally, f"a line with {fault}", 10)


def test_without_names_nothing_hangs_and_nothing_is_lost(site: Site, tally: Tally) -> None:
    settings = site.machine.root / "etc/turku-agent/config.d/90-name.json"
    count = times(1, 5)
    try:
        for _ in range(count):
            site.later()
            state = site.change()
            site.make_due()
            site.wire.silence(53, "udp")
            settings.write_text(json.dumps({"api_url": site.api.url(NAME)}))
            done = site.run("turku-agent-ping", seconds=QUICK_SECONDS)
            assert done.exit_code == 75, done
            assert NAME in done.errors
            # The API is found, and the storage unit isn't.
            settings.unlink()
            done = site.run("turku-agent-ping", seconds=QUICK_SECONDS)
            assert done.exit_code == 1, done
            assert "name can't be resolved" in done.errors
            site.settle(QUICK_SECONDS)
            site.wire.heal()
            settings.write_text(json.dumps({"api_url": site.api.url(NAME)}))
            site.later()
            site.make_due()
            done = site.run("turku-agent-ping", seconds=QUICK_SECONDS)
            assert done.exit_code == 0, done
            site.turku.wait_until_committed(60)
            assert state in site.held().values()
    finally:
        settings.unlink(missing_ok=True)
    finish(site, tally, "DNS gone, before the check-in and before the session", 2 * count)


AGENTS_OWN = {
    "update_config": ("turku-update-config",),
    "agent_status": ("turku-agent-ping", "--status"),
    "agent_ping_restore": ("turku-agent-ping", "--list"),
    "agent_backup_now": ("turku-agent-ping", "--backup-now"),
}
IN_A_BACKUP = ("agent_ping_checkin", "storage_ping_checkin", "storage_ping_source_update")


def spoilt_call(site: Site, call: str, kind: str) -> None:
    """Do what makes a call, its answer spoilt; it has to end in time and say what is wrong."""
    site.api.spoil(call, kind, 2 if call in IN_A_BACKUP else 1)
    if call in AGENTS_OWN:
        if call == "update_config":
            # What the API knows already isn't sent again.
            site.machine.write_source(SOURCE, {"path": str(site.source), "comment": kind})
        done = site.run(*AGENTS_OWN[call], seconds=QUICK_SECONDS)
        # An empty object is what update_config answers.
        is_right = call == "update_config" and kind == "empty object"
        is_right |= call == "update_config" and kind == "wrong type"
        assert is_right or done.exit_code != 0, done
    elif call == "storage_update_config":
        done = site.turku.storage_run("turku-storage-update-config", check=False)
        assert "Traceback" not in done.errors
    else:
        disturbed_run(site, QUICK_SECONDS)
    assert site.api.plan.struck, f"{call} was not made"
    site.settle(QUICK_SECONDS)


def test_an_answer_of_the_api_that_is_spoilt_changes_nothing(
    site: Site, tally: Tally, dice: random.Random
) -> None:
    calls = [*AGENTS_OWN, *IN_A_BACKUP, "storage_update_config"]
    every = [(call, kind) for call in calls for kind in SPOILS]
    chosen = every if FULL else [dice.choice([e for e in every if e[0] in IN_A_BACKUP])]
    for call, kind in chosen:
        spoilt_call(site, call, kind)
        if FULL:
            site.clean_run()
            assert site.count_lost() == 0
    assert site.api.plan.strayed == 0, "a redirect was followed, with the secret"
    finish(
        site, tally, "the API answers 500, HTML, garbage, half, nothing, a redirect", len(chosen)
    )


@pytest.mark.only_in_full
@pytest.mark.parametrize("part", [0.02, 0.1, 0.6, 0.95])
def test_the_deadlines_of_every_day_hold(tally: Tally, dice: random.Random, part: float) -> None:
    with running_site(dice, PLAIN) as site:
        site.clean_run()
        whole = session_bytes(site)
        site.wire.stall_after(site.ssh_port, int(whole * part))
        began = time.monotonic()
        assert disturbed_run(site, REAL_SECONDS) != 0
        assert time.monotonic() - began > 20, "the stall was not one"
        finish(site, tally, "SSH connection: stalls for good, keepalives as delivered", 1)

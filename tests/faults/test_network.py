"""Whatever the network does, sessions end, slots come back, and the next run is clean."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.bad_api import SPOILS
from tests.faults.site import PLAIN, QUICK, SOURCE, Site, run_in_time, running_site
from tests.faults.tally import FULL, SEED, Tally, times
from tests.faults.wire import NAME, with_name_server
from turku_core.local import parts
from turku_core.local.layout import program
from turku_core.local.turku import Finished, Machine

pytestmark = pytest.mark.needs_root

QUICK_SECONDS = 120.0
"""In which a program has to end, with keepalives every other second: ten times what it takes."""

REAL_SECONDS = 240.0
"""The same with the keepalives of every day: 60 s, 90 s for the tunnel, and OpenSSH 9.2's 150 s."""

FAULTS = ("cut", "stall to", "stall both", "stall from")
CHOSEN = FAULTS if FULL else [random.Random(SEED).choice(FAULTS)]
"""Others by another seed."""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(random.Random(SEED), QUICK) as running:
        running.clean_run()
        yield running


def disturbed_run(site: Site, seconds: float) -> int:
    """Run a backup while something is wrong, and return the exit code; then all must be well."""
    site.later()
    state = site.change()
    site.make_due()
    done = site.run("turku-agent-ping", seconds=seconds)
    site.settle(seconds)
    site.wire.heal()
    site.turku.wait_until_committed(REAL_SECONDS)
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


@pytest.mark.parametrize("part", range(2) if FULL else [0])
@pytest.mark.parametrize("fault", CHOSEN)
def test_a_connection_that_breaks_at_any_byte_loses_nothing(
    site: Site, tally: Tally, dice: random.Random, fault: str, part: int
) -> None:
    count = times(1, 6)
    broken = 0
    for number in range(count):
        # In full, all over the session; else in the midst of the transfer.
        share = (number + dice.random()) / count if FULL else dice.uniform(0.3, 0.9)
        at = int(site.session_bytes * share)
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


def is_leased(site: Site) -> bool:
    """Say whether the API takes the source for being backed up."""
    with site.database() as rows:
        query = "SELECT count(*) FROM turku_api_source WHERE lease_until > datetime('now')"
        ((count,),) = rows.execute(query)
    return bool(count)


@pytest.mark.only_in_full
def test_a_run_that_is_cut_for_good_is_handed_out_again_when_its_lease_is_over(
    site: Site, tally: Tally, dice: random.Random
) -> None:
    count = 4
    for _ in range(count):
        site.later()
        state = site.change()
        site.make_due()
        # Nobody can tell the API of it.
        site.api.spoil("storage_ping_source_update", "500", 1_000_000)
        site.wire.cut_after(site.ssh_port, int(site.session_bytes * dice.uniform(0.3, 0.8)))
        done = site.ping(seconds=QUICK_SECONDS)
        assert done.exit_code != 0
        site.settle(QUICK_SECONDS)
        site.wire.heal()
        done = site.run("turku-agent-ping", "--verbose", seconds=QUICK_SECONDS)
        assert (done.exit_code, "nothing is due" in done.errors) == (0, True), done
        assert is_leased(site)
        site.later()
        done = site.ping(seconds=QUICK_SECONDS)
        assert done.exit_code == 0, (done, site.log()[-2000:])
        site.api.spoil("", "", 0)
        site.turku.wait_until_committed(REAL_SECONDS)
        assert state in site.held().values()
        assert not is_leased(site)
    finish(site, tally, "a run that is cut for good: handed out when its lease is over", count)


@pytest.mark.only_in_full
def test_a_stall_that_passes_is_waited_for(site: Site, tally: Tally, dice: random.Random) -> None:
    count = 8
    for _ in range(count):
        site.later()
        state = site.change()
        site.make_due()
        site.wire.stall_after(site.ssh_port, int(site.session_bytes * dice.uniform(0.3, 0.9)))
        with healed_after(site, 1.0):
            done = site.ping(seconds=QUICK_SECONDS)
        assert done.exit_code == 0, (done, site.log()[-2000:])
        site.turku.wait_until_committed(REAL_SECONDS)
        assert state in site.held().values()
    finish(site, tally, "SSH connection: stalls for a second and goes on", count)


@pytest.mark.only_in_full
@pytest.mark.parametrize("fault", ["100 kbit/s", "20 % loss"])
def test_a_bad_line_only_takes_longer(tally: Tally, dice: random.Random, fault: str) -> None:
    with running_site(dice, PLAIN) as site:
        site.clean_run()
        for number in range(6):
            site.later()
            # What a session costs beside its files is about 60 kB, twice 5 s.
            state = site.change(size=8_000 if fault == "100 kbit/s" else 150_000)
            site.make_due()
            if fault == "100 kbit/s":
                site.wire.slow("100kbit")
            else:
                site.wire.lose(20, (site.ssh_port, site.api.port))
            done = site.ping(seconds=REAL_SECONDS)
            assert done.exit_code == 0, (done, site.log()[-2000:])
            site.turku.wait_until_committed(REAL_SECONDS)
            assert state in site.held().values()
            settings = {"path": str(site.source), "comment": f"comment {number}"}
            site.machine.write_source(SOURCE, settings)
            done = site.run("turku-update-config", seconds=REAL_SECONDS)
            assert done.exit_code == 0, done
            wrong = site.restore()
            site.wire.heal()
            site.settle(REAL_SECONDS)
            assert wrong == 0
        finish(site, tally, f"a line with {fault}: backup, configuration, restore", 18)


def test_without_names_nothing_hangs_and_nothing_is_lost(site: Site, tally: Tally) -> None:
    settings = site.machine.root / "etc/turku-agent/config.d/90-name.json"
    units = site.turku.layout.storage / "etc/turku-storage/config.d/90-name.json"
    count = times(1, 5)
    try:
        for _ in range(count):
            site.later()
            state = site.change()
            site.make_due()
            site.wire.silence(53, "udp")
            settings.write_text(json.dumps({"api_url": site.api.url(NAME)}))
            done = site.ping(seconds=QUICK_SECONDS)
            assert done.exit_code == 75, done
            assert NAME in done.errors
            units.write_text(json.dumps({"api_url": site.api.url(NAME)}))
            done = storage_run(site, "turku-storage-update-config")
            units.unlink()
            assert (done.exit_code, NAME in done.errors) == (75, True), done
            # The API is found, and the storage unit isn't.
            settings.unlink()
            done = site.ping(seconds=QUICK_SECONDS)
            assert done.exit_code == 1, done
            assert "name can't be resolved" in done.errors
            site.settle(QUICK_SECONDS)
            site.wire.heal()
            settings.write_text(json.dumps({"api_url": site.api.url(NAME)}))
            site.later()
            site.make_due()
            done = site.ping(seconds=QUICK_SECONDS)
            assert done.exit_code == 0, done
            site.turku.wait_until_committed(REAL_SECONDS)
            assert state in site.held().values()
    finally:
        settings.unlink(missing_ok=True)
        units.unlink(missing_ok=True)
    lost = site.count_lost()
    tally.note(
        "DNS gone, before a check-in, a session and a unit's call", times=3 * count, lost=lost
    )
    assert lost == 0


def test_names_that_go_away_within_a_run_lose_nothing(
    site: Site, tally: Tally, dice: random.Random
) -> None:
    settings = site.machine.root / "etc/turku-agent/config.d/90-name.json"
    settings.write_text(json.dumps({"api_url": site.api.url(NAME)}))
    try:
        site.names.come_back()
        assert disturbed_run(site, QUICK_SECONDS) == 0
        every = range(site.names.asked)
        assert len(every) > 2, "neither the API nor the storage unit was asked for by name"
        for answered in every if FULL else [dice.choice(every)]:
            site.names.go_away_after(answered)
            disturbed_run(site, QUICK_SECONDS)
            assert site.names.asked > answered, "the fault struck nothing"
            site.names.come_back()
            assert disturbed_run(site, QUICK_SECONDS) == 0
    finally:
        settings.unlink()
        site.names.come_back()
    finish(site, tally, "DNS gone, after any question of a run", times(1, len(every)))


def storage_run(site: Site, name: str) -> Finished:
    """Run one of the storage unit's programs; it has to end by itself."""
    command = [program(name), "--root", str(site.turku.layout.storage)]
    return run_in_time(with_name_server(site.folder, command), REAL_SECONDS)


AGENTS_OWN = {
    "update_config": ("turku-update-config",),
    "agent_status": ("turku-agent-ping", "--status"),
    "agent_ping_restore": ("turku-agent-ping", "--list"),
    "agent_backup_now": ("turku-agent-ping", "--backup-now"),
    "health": ("turku-agent-ping", "--check"),
}
IN_A_BACKUP = ("agent_ping_checkin", "storage_ping_checkin", "storage_ping_source_update")
REPORTS = ("storage_ping_source_update", "agent_restore_report")
CALLS = (*AGENTS_OWN, *IN_A_BACKUP, "storage_update_config", "agent_restore_report")
OBJECTS = ("wrong type", "empty object")
"""These are right as answers to calls of whose answer nothing is looked at."""
RIGHT = {(call, kind) for call in ("update_config", "health") for kind in OBJECTS}


def spoilt_call(site: Site, call: str, kind: str) -> None:
    """Do what makes a call, its answer spoilt; it has to end in time and say what is wrong."""
    if call == "agent_restore_report":
        order = ("order-restore", site.machine.uuid, SOURCE)
        site.turku.api_run(*order)
    site.api.spoil(call, kind, 2 if call in IN_A_BACKUP else 1)
    if call in AGENTS_OWN:
        if call == "update_config":
            # What the API knows already isn't sent again.
            site.machine.write_source(SOURCE, {"path": str(site.source), "comment": kind})
        done = site.run(*AGENTS_OWN[call], seconds=QUICK_SECONDS)
        assert (call, kind) in RIGHT or done.exit_code != 0, done
    elif call == "storage_update_config":
        storage_run(site, "turku-storage-update-config")
    else:
        disturbed_run(site, QUICK_SECONDS)
    assert site.api.plan.struck, f"{call} was not made"
    site.settle(QUICK_SECONDS)


@pytest.mark.parametrize("call", CALLS if FULL else [random.Random(SEED).choice(IN_A_BACKUP)])
def test_an_answer_of_the_api_that_is_spoilt_changes_nothing(
    site: Site, tally: Tally, dice: random.Random, call: str
) -> None:
    # An object is the API's own word that it has a report.
    kinds = [each for each in SPOILS if call not in REPORTS or each not in OBJECTS]
    kinds = kinds if FULL else [dice.choice(kinds)]
    for kind in kinds:
        spoilt_call(site, call, kind)
        if FULL and call in IN_A_BACKUP:
            site.clean_run()
            assert site.count_lost() == 0
    assert site.api.plan.strayed == 0, "a redirect was followed, with the secret"
    finish(site, tally, f"a spoilt answer to {call}", len(kinds))


@pytest.mark.only_in_full
def test_a_registration_whose_answer_is_spoilt_ends_in_one_machine(
    site: Site, tally: Tally
) -> None:
    keys = json.loads(site.turku.layout.registration_keys.read_text())
    reach = {"api_ca_certificate": str(site.api.ca_certificate)}
    for number, kind in enumerate(SPOILS):
        name = f"newcomer-{number}"
        root = parts.set_up_machine(site.turku.layout, name, site.api.url(), keys["machine"], reach)
        command = Machine(name, root).command("turku-update-config")
        site.api.spoil("update_config", kind, 1)
        done = run_in_time(command, QUICK_SECONDS)
        assert (done.exit_code == 0) == (kind in OBJECTS), done
        assert site.api.plan.struck
        assert run_in_time(command, QUICK_SECONDS).exit_code == 0
        with site.database() as rows:
            query = "SELECT uuid FROM turku_api_machine WHERE unit_name = ?"
            found = rows.execute(query, (name,)).fetchall()
        # An answer that says all is well is believed.
        assert found == [(Machine(name, root).uuid,)] or (kind in OBJECTS and found == [])
    finish(site, tally, "a registration is answered by 500, garbage, half...", len(SPOILS))


@pytest.mark.only_in_full
@pytest.mark.parametrize("call", [*IN_A_BACKUP, "storage_update_config", "of the agent"])
def test_a_call_that_is_never_answered_ends_in_its_time(
    tally: Tally, dice: random.Random, call: str
) -> None:
    """With the deadlines of every day: a minute without a byte."""
    with running_site(dice, PLAIN) as site:
        site.clean_run()
        if call == "of the agent":
            # All of its programs at once, on connections that go silent at any byte.
            site.wire.stall_after(site.api.port, dice.randrange(100, 8000))
            with ThreadPoolExecutor() as pool:
                commands = list(AGENTS_OWN.values())
                ended = list(pool.map(lambda each: site.run(*each, seconds=REAL_SECONDS), commands))
            assert any(each.exit_code != 0 for each in ended), ended
            site.wire.heal()
        else:
            site.api.spoil(call, "stall", 1)
            if call == "storage_update_config":
                assert storage_run(site, "turku-storage-update-config").exit_code == 75
            else:
                disturbed_run(site, REAL_SECONDS)
            assert site.api.plan.struck
        site.settle(REAL_SECONDS)
        finish(site, tally, "a call of the API's that is never answered", 1)


@pytest.mark.only_in_full
@pytest.mark.parametrize("part", [0.02, 0.1, 0.6, 0.95])
def test_the_deadlines_of_every_day_hold(tally: Tally, dice: random.Random, part: float) -> None:
    with running_site(dice, PLAIN) as site:
        site.clean_run()
        site.wire.stall_after(site.ssh_port, int(site.session_bytes * part))
        began = time.monotonic()
        assert disturbed_run(site, REAL_SECONDS) != 0
        assert time.monotonic() - began > 20, "the stall was not one"
        finish(site, tally, "SSH connection: stalls for good, keepalives as delivered", 1)

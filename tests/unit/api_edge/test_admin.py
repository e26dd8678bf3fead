"""The administration site."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.support.api_world import AgentCaller, UnitCaller, World
from turku_core import credentials
from turku_core.api.models import (
    Backup,
    FilterSet,
    Machine,
    Outcome,
    RegistrationKey,
    RestoreGrant,
    RestoreOrder,
    Source,
    StorageUnit,
)
from turku_core.api.restore_orders import order_restore

SITE = "/admin/turku_api"
LISTS = (
    "machine",
    "source",
    "storageunit",
    "backup",
    "snapshot",
    "registrationkey",
    "restoregrant",
    "restoreorder",
    "filterset",
)


@pytest.fixture
def site(world: World) -> Iterator[Client]:
    """A browser in which an administrator has logged in."""
    client = Client()
    client.force_login(User.objects.create_superuser("admin"))
    yield client


def text(client: Client, path: str) -> str:
    """A page as text, without its tags."""
    response = client.get(path)
    assert response.status_code == 200, path
    words = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", response.content.decode(), flags=re.S)
    return " ".join(html.unescape(words).split())


def act(client: Client, model: str, action: str, *keys: object) -> str:
    """Run an action on rows; what the site then says."""
    response = client.post(
        f"{SITE}/{model}/", {"action": action, "_selected_action": [str(key) for key in keys]}
    )
    if response.status_code == 200:
        return response.content.decode()
    assert response.status_code == 302
    url = response.headers["Location"]
    return text(client, url if url.startswith("/") else f"{SITE}/{model}/")


def test_everything_can_be_listed_searched_and_looked_at(
    site: Client, world: World, agent: AgentCaller
) -> None:
    FilterSet.objects.create(name="junk", rules=["- *.tmp"])
    RestoreGrant.objects.create(
        machine=agent.row, from_machine=world.agent("old").row, until=world.now
    )
    order_restore(agent.row, agent.row, {"source": "docs"}, world.now, "root")
    for model in LISTS:
        text(site, f"{SITE}/{model}/")
        text(site, f"{SITE}/{model}/?q=web")
    for row in (
        agent.row,
        agent.source(),
        StorageUnit.objects.get(),
        Backup.objects.get(),
        RegistrationKey.objects.get(name="machines"),
        RestoreGrant.objects.get(),
        RestoreOrder.objects.get(),
        FilterSet.objects.get(),
    ):
        page = text(site, f"{SITE}/{row._meta.model_name}/{row.pk}/change/")
        assert str(row) in page


def test_the_first_page_says_what_needs_attention_and_why(
    site: Client, world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    assert "Nothing is overdue." in text(site, "/admin/")
    world.agent("db/0", sources={"db": {"path": "/srv/db"}})
    world.pass_time(hours=3)
    page = text(site, "/admin/")
    assert "db/0: db overdue 2026-03-11 12:00 none The machine has never checked in" in page
    assert "1 overdue 0 failing 0 missed" in page
    assert "store-1 active 0 % 100.0 GiB 2026-03-11 12:00" in page


def test_prior_art_36_a_failed_backup_is_on_the_first_page(
    site: Client, world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    world.pass_time(minutes=1)
    unit.report_run(agent, success=False, snapshot="", summary="rsync: <no> space left")
    page = text(site, "/admin/")
    assert "It failed 1 time: rsync: <no> space left." in page
    assert "1 failed in 24 h" in page and "1 failing" in page


def test_sources_can_be_picked_by_what_needs_attention(
    site: Client, world: World, agent: AgentCaller
) -> None:
    world.agent("db/0", sources={"db": {"path": "/srv/db"}})
    world.pass_time(hours=3)
    for attention, seen in (("any", True), ("overdue", True), ("failing", False)):
        page = text(site, f"{SITE}/source/?attention={attention}")
        assert ("overdue: The machine has never checked in" in page) is seen
        assert "docs" not in page.partition("Filter")[0].partition("Next due")[2]


def test_records_of_one_machine_can_be_picked(
    site: Client, world: World, agent: AgentCaller
) -> None:
    other = world.agent("db/0")
    found = text(site, f"{SITE}/backup/?machine__id__exact={agent.row.pk}")
    none = text(site, f"{SITE}/backup/?machine__id__exact={other.row.pk}")
    assert ("1 backup" in found, "0 backups" in none) == (True, True)


def test_machines_are_paused_resumed_backed_up_retired_and_reinstated(
    site: Client, world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    key = agent.row.pk
    assert "1 paused." in act(site, "machine", "pause", key)
    assert agent.row.paused
    assert "is paused: `turku-api resume" in act(site, "machine", "backup_now", key)
    assert "1 resumed." in act(site, "machine", "resume", key)
    assert "1 asked for a backup." in act(site, "machine", "backup_now", key)
    assert list(agent.check_in()) == ["docs"]
    assert "1 retired." in act(site, "machine", "retire", key)
    assert world.call("agent_ping_checkin", agent.login).status == 403
    assert Backup.objects.count() == 1
    assert "1 reinstated." in act(site, "machine", "reinstate", key)
    assert world.call("agent_ping_checkin", agent.login).status == 200
    assert "paused" in text(site, f"{SITE}/machine/{key}/history/")


def test_sources_and_storage_units_are_paused_and_resumed(
    site: Client, world: World, unit: UnitCaller, agent: AgentCaller
) -> None:
    source, storage = agent.source().pk, unit.row.pk
    act(site, "source", "pause", source)
    act(site, "storageunit", "pause", storage)
    assert (agent.source().paused, unit.row.paused) == (True, True)
    act(site, "source", "resume", source)
    act(site, "storageunit", "resume", storage)
    assert (agent.source().paused, unit.row.paused) == (False, False)
    act(site, "source", "backup_now", source)
    assert agent.source().requested_at


def test_a_machine_that_cannot_be_taken_back_is_said(
    site: Client, world: World, agent: AgentCaller
) -> None:
    agent.row.retire(world.now)
    world.agent("web/1", ssh_public_key=agent.config["ssh_public_key"])
    said = act(site, "machine", "reinstate", agent.row.pk)
    assert "Not reinstated: web/0: " in said
    assert "can't be taken back: Another active machine uses this SSH public key." in said


def test_another_machine_is_let_restore_through_a_form(
    site: Client, world: World, agent: AgentCaller
) -> None:
    new = world.agent("new")
    response = site.post(
        f"{SITE}/machine/", {"action": "allow_restore", "_selected_action": [agent.row.pk]}
    )
    form = response.headers["Location"]
    assert form == f"{SITE}/restoregrant/add/?from_machine={agent.row.pk}"
    assert "web/0" in site.get(form).content.decode()
    response = site.post(form, {"machine": new.row.pk, "from_machine": agent.row.pk, "days": 3})
    assert response.status_code == 302
    grant = RestoreGrant.objects.get()
    assert (grant.until, grant.created_by) == (world.now + timedelta(days=3), "admin")
    assert agent.uuid in new.restore()["restore_from"]
    assert "1 ended." in act(site, "restoregrant", "revoke", grant.pk)
    assert not new.restore().get("restore_from")


def test_an_order_is_taken_back_unless_a_machine_has_fetched_it(
    site: Client, world: World, agent: AgentCaller
) -> None:
    first, second = (
        order_restore(agent.row, agent.row, {"source": "docs"}, world.now, "root") for _ in range(2)
    )
    assert "1 cancelled." in act(site, "restoreorder", "cancel", first.pk)
    world.call("agent_ping_checkin", agent.login)
    assert "is running already" in act(site, "restoreorder", "cancel", second.pk)
    assert "is cancelled already" in act(site, "restoreorder", "cancel", first.pk)


def test_a_grant_that_means_nothing_is_refused_with_the_reason(
    site: Client, world: World, agent: AgentCaller
) -> None:
    add = f"{SITE}/restoregrant/add/"
    retired = world.agent("retired").row
    retired.retire(world.now)
    fields = {"machine": retired.pk, "from_machine": agent.row.pk, "days": 3}
    assert site.post(add, fields).status_code == 302
    assert "Not possible: retired is not active" in text(site, add)
    for wrong in ({"machine": agent.row.pk}, {"days": 400}, {"machine": ""}):
        assert site.post(add, {**fields, **wrong}).status_code == 200
    assert not RestoreGrant.objects.exists()


def shown_secret(page: str) -> str:
    match = re.search(r'id="turku-secret"[^>]*>([^<]+)<', page)
    assert match is not None
    return match[1]


def test_prior_art_08_a_keys_secret_is_shown_on_one_page_and_stored_nowhere(
    site: Client, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        response = site.post(f"{SITE}/registrationkey/add/", {"name": "web", "kind": "machine"})
    secret = shown_secret(response.content.decode())
    assert "no-store" in response.headers["Cache-Control"]
    assert secret not in str(response.cookies) + caplog.text
    key = RegistrationKey.objects.get(name="web")
    assert key.secret_hash == credentials.hash_secret(secret)
    joined = world.agent(register=False)
    assert joined.update(auth={"name": "web", "secret": secret}).status == 200

    rotated = shown_secret(act(site, "registrationkey", "rotate", key.pk))
    key.refresh_from_db()
    assert key.secret_hash == credentials.hash_secret(rotated)
    for path in (
        f"{SITE}/registrationkey/",
        f"{SITE}/registrationkey/{key.pk}/change/",
        f"{SITE}/registrationkey/{key.pk}/history/",
        f"{SITE}/machine/{joined.row.pk}/change/",
    ):
        page = site.get(path).content.decode()
        for word in (secret, rotated, key.secret_hash, joined.row.secret_hash):
            assert word not in page


def test_prior_art_10_a_key_is_disabled_with_its_machines(
    site: Client, world: World, agent: AgentCaller
) -> None:
    key = RegistrationKey.objects.get(name="machines").pk
    act(site, "registrationkey", "disable", key)
    assert world.call("agent_ping_checkin", agent.login).status == 200
    act(site, "registrationkey", "disable_with_machines", key)
    assert world.call("agent_ping_checkin", agent.login).status == 403
    act(site, "registrationkey", "enable", key)
    assert RegistrationKey.objects.get(pk=key).active


@pytest.mark.parametrize("model", [name for name in LISTS if name != "filterset"])
def test_prior_art_30_nothing_that_history_hangs_on_can_be_deleted(
    site: Client, world: World, agent: AgentCaller, model: str
) -> None:
    RestoreGrant.objects.create(
        machine=agent.row, from_machine=world.agent("old").row, until=world.now
    )
    assert "Delete" not in text(site, f"{SITE}/{model}/")
    for key in (1, agent.row.pk, agent.source().pk, StorageUnit.objects.get().pk):
        assert site.post(f"{SITE}/{model}/{key}/delete/", {"post": "yes"}).status_code in (302, 403)
    act(site, model, "delete_selected", agent.row.pk)
    assert (Machine.objects.count(), StorageUnit.objects.count()) == (2, 1)
    assert (Backup.objects.count(), RegistrationKey.objects.count()) == (1, 2)


@pytest.mark.parametrize("model", ["machine", "source", "backup", "snapshot", "restoreorder"])
def test_what_machines_say_and_the_record_cannot_be_changed(
    site: Client, agent: AgentCaller, model: str
) -> None:
    row = {"machine": agent.row, "source": agent.source(), "backup": Backup.objects.get()}.get(
        model
    )
    assert site.get(f"{SITE}/{model}/add/").status_code == 403
    if row is not None:
        path = f"{SITE}/{model}/{row.pk}/change/"
        assert "Save" not in text(site, path)
        assert site.post(path, {"unit_name": "changed", "name": "changed"}).status_code == 403


def test_a_storage_units_mark_can_be_changed_and_nothing_that_it_says_of_itself(
    site: Client, unit: UnitCaller
) -> None:
    path = f"{SITE}/storageunit/{unit.row.pk}/change/"
    fields = {"high_water_mark": "90", "active": "on", "comment": "", "name": "changed"}
    assert site.post(path, fields).status_code == 302
    assert (unit.row.high_water_mark, unit.row.name) == (90, "store-1")
    assert site.post(path, {**fields, "high_water_mark": "101"}).status_code == 200


def test_an_operators_word_on_a_storage_unit_outlives_what_relations_announce(
    site: Client, unit: UnitCaller
) -> None:
    path = f"{SITE}/storageunit/{unit.row.pk}/change/"
    unit.row.deactivate(withdrawn=True)
    assert site.post(path, {"high_water_mark": "70"}).status_code == 302
    assert (unit.row.active, unit.row.withdrawn) == (False, True)
    assert site.post(path, {"high_water_mark": "70", "active": "on"}).status_code == 302
    assert (unit.row.active, unit.row.withdrawn) == (True, False)


def test_filter_sets_are_edited_a_rule_a_line_and_kept_while_in_use(
    site: Client, world: World
) -> None:
    add = f"{SITE}/filterset/add/"
    assert site.post(add, {"name": "junk", "rules": "- *.tmp\r\n\r\n- /c/"}).status_code == 302
    junk = FilterSet.objects.get()
    assert junk.rules == ["- *.tmp", "- /c/"]
    page = site.get(f"{SITE}/filterset/{junk.pk}/change/").content.decode()
    assert "- *.tmp\n- /c/</textarea>" in page
    refused = site.post(add, {"name": "more", "rules": "merge nowhere"})
    assert "there is no filter set named nowhere" in refused.content.decode()

    world.agent(sources={"docs": {"path": "/srv/docs", "filter": ["merge junk"]}})
    delete = f"{SITE}/filterset/{junk.pk}/delete/"
    assert site.post(delete, {"post": "yes"}).status_code == 403
    Source.objects.update(published=False)
    assert site.post(delete, {"post": "yes"}).status_code == 302
    assert not FilterSet.objects.exists()


def test_who_may_only_look_may_only_look(world: World, agent: AgentCaller) -> None:
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client = Client()
    client.force_login(viewer)
    text(client, "/admin/")
    text(client, f"{SITE}/machine/{agent.row.pk}/change/")
    act(client, "machine", "pause", agent.row.pk)
    act(client, "registrationkey", "rotate", 1)
    assert not agent.row.paused
    assert client.get(f"{SITE}/registrationkey/add/").status_code == 403
    assert Client().get("/admin/").status_code == 302


def fleet(world: World, machines: int) -> None:
    """Make a fleet in bulk: two sources and three records a machine, every seventh failing."""
    now = world.now
    units = [
        StorageUnit.objects.create(
            name=f"s{n}", secret_hash="x", space_total=10, space_available=9, last_checkin_at=now
        )
        for n in range(4)
    ]
    rows = Machine.objects.bulk_create(
        Machine(
            uuid=f"00000000-0000-4000-8000-{n:012d}",
            unit_name=f"m/{n}",
            ssh_key_fingerprint=str(n),
            environment_name="prod",
            service_name="m",
            last_checkin_at=now,
        )
        for n in range(machines)
    )
    sources = Source.objects.bulk_create(
        Source(
            machine=row,
            name=name,
            path="/",
            frequency="daily",
            retention="last 5 days",
            since=now - timedelta(days=9),
            last_success_at=now - timedelta(hours=5),
            storage=units[n % 4],
            shared_service=name == "b",
            failures=n % 7 == 0,
            last_failure_at=now - timedelta(hours=1) if n % 7 == 0 else None,
        )
        for n, row in enumerate(rows)
        for name in ("a", "b")
    )
    Backup.objects.bulk_create(
        Backup(
            machine=source.machine,
            source=source,
            storage=source.storage,
            machine_uuid=source.machine.uuid,
            unit_name=source.machine.unit_name,
            source_name=source.name,
            storage_name="s",
            outcome=outcome,
            snapshot="x",
            summary="it says why",
            time_begin=now - timedelta(hours=hours),
            time_end=now,
            recorded_at=now,
        )
        for source in sources
        for outcome, hours in ((Outcome.SUCCEEDED, 5), (Outcome.FAILED, 1))
    )


def test_a_page_takes_as_many_queries_for_a_thousand_machines_as_for_ten(
    site: Client, world: World
) -> None:
    paths = ["/admin/", *(f"{SITE}/{model}/" for model in LISTS)]
    paths += [f"{SITE}/source/?attention=any", f"{SITE}/machine/?q=m/1", f"{SITE}/backup/?q=m/1"]

    def count() -> dict[str, int]:
        counts = {}
        for path in paths:
            with CaptureQueriesContext(connection) as queries:
                assert site.get(path).status_code == 200
            counts[path] = len(queries)
        return counts

    fleet(world, 10)
    few = count()
    for model in (Backup, Machine, StorageUnit):
        model.objects.all().delete()
    fleet(world, 1000)
    many = count()
    assert many == few
    assert max(many.values()) <= 15

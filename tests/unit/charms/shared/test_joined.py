"""What joins charms' states keeps Juju's rules, shown by charms that do next to nothing."""

from __future__ import annotations

from pathlib import Path

import ops
import pytest
from ops import testing

from tests.support.joined import Joined

GIVER = {
    "name": "giver",
    "provides": {"out": {"interface": "thing"}},
    "peers": {"ring": {"interface": "ring"}},
}
TAKER = {"name": "taker", "requires": {"in": {"interface": "thing"}}}
HOST = {"name": "host", "provides": {"info": {"interface": "juju-info"}}}
BESIDE = {
    "name": "beside",
    "subordinate": True,
    "requires": {"host": {"interface": "juju-info", "scope": "container"}},
}


class Giver(ops.CharmBase):
    """Gives each relation a secret, and counts who said hello."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        for event in (self.on.out_relation_created, self.on.out_relation_changed):
            framework.observe(event, self._give)
        framework.observe(self.on.config_changed, self._rotate)
        framework.observe(self.on.out_relation_departed, self._note_departure)
        framework.observe(self.on.out_relation_broken, self._take_back)

    def _give(self, event: ops.RelationEvent) -> None:
        heard = sorted(
            unit.name for unit in event.relation.units if event.relation.data[unit].get("hello")
        )
        self.unit.status = ops.ActiveStatus(", ".join(heard))
        if self.unit.is_leader() and "secret" not in event.relation.data[self.app]:
            secret = self.app.add_secret({"word": "first"}, label=f"out-{event.relation.id}")
            secret.grant(event.relation)
            event.relation.data[self.app]["secret"] = str(secret.id)

    def _rotate(self, event: ops.EventBase) -> None:
        if self.unit.is_leader():
            for relation in self.model.relations["out"]:
                secret = self.model.get_secret(label=f"out-{relation.id}")
                secret.set_content({"word": "second"})

    def _note_departure(self, event: ops.RelationDepartedEvent) -> None:
        who = event.departing_unit.name if event.departing_unit else "nobody"
        self.unit.status = ops.ActiveStatus(f"{who} departs")

    def _take_back(self, event: ops.RelationBrokenEvent) -> None:
        if self.unit.is_leader():
            self.model.get_secret(label=f"out-{event.relation.id}").remove_all_revisions()


class Taker(ops.CharmBase):
    """Says hello, and tells what it was given."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        for event in (self.on.in_relation_changed, self.on.secret_changed):
            framework.observe(event, self._take)
        framework.observe(self.on.in_relation_departed, self._note_departure)

    def _take(self, event: ops.EventBase) -> None:
        for relation in self.model.relations["in"]:
            relation.data[self.unit]["hello"] = "yes"
            secret_id = relation.data[relation.app].get("secret")
            if secret_id:
                word = self.model.get_secret(id=secret_id).get_content(refresh=True)["word"]
                self.unit.status = ops.ActiveStatus(word)

    def _note_departure(self, event: ops.RelationDepartedEvent) -> None:
        if event.departing_unit == self.unit:
            Taker.departed.append(self.unit.name)

    departed: list[str] = []


class Beside(ops.CharmBase):
    """Tells its principal."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on.host_relation_changed, self._tell)

    def _tell(self, event: ops.RelationEvent) -> None:
        units = ", ".join(sorted(unit.name for unit in event.relation.units))
        self.unit.status = ops.ActiveStatus(units)


@pytest.fixture
def model(tmp_path: Path) -> Joined:
    Taker.departed = []
    joined = Joined(tmp_path)
    joined.deploy("giver", Giver, metadata=GIVER, units=2)
    joined.deploy("taker", Taker, metadata=TAKER, units=2)
    joined.settle()
    return joined


def test_what_one_side_writes_the_other_reads(model: Joined) -> None:
    model.integrate("taker:in", "giver:out")
    model.settle()
    assert model.statuses() == {
        "giver/0": "active: taker/0, taker/1",
        "giver/1": "active: taker/0, taker/1",
        "taker/0": "active: first",
        "taker/1": "active: first",
    }
    assert model.settle() == 0


def test_a_new_revision_of_a_secret_reaches_who_may_see_it(model: Joined) -> None:
    model.integrate("taker:in", "giver:out")
    model.settle()
    model.configure("giver")
    model.settle()
    assert model.statuses()["taker/1"] == "active: second"


def test_a_departure_names_who_departs_on_both_sides(model: Joined) -> None:
    model.integrate("taker:in", "giver:out")
    model.settle()
    model.remove_unit("taker/0")
    assert model.statuses()["giver/0"] == "active: taker/0 departs"
    assert Taker.departed == ["taker/0", "taker/0"]
    assert "taker/0" not in model.statuses()


def test_a_secret_that_was_taken_back_is_seen_by_nobody(model: Joined) -> None:
    link = model.integrate("taker:in", "giver:out")
    model.settle()
    model.remove_relation(link)
    assert not model.apps["giver"].secrets
    model.integrate("taker:in", "giver:out")
    model.settle()
    assert model.statuses()["taker/0"] == "active: first"


def test_when_the_leader_goes_the_next_unit_leads(model: Joined) -> None:
    model.remove_unit("giver/0")
    model.integrate("taker:in", "giver:out")
    model.settle()
    assert model.hooks_run.count("giver/1 leader-elected") == 1
    assert model.statuses()["taker/0"] == "active: first"


def test_a_unit_that_comes_later_is_joined_as_well(model: Joined) -> None:
    model.integrate("taker:in", "giver:out")
    model.settle()
    model.add_unit("taker")
    model.settle()
    assert model.statuses()["giver/0"] == "active: taker/0, taker/1, taker/2"


def test_a_subordinate_sees_its_own_principal_alone_and_goes_with_it(tmp_path: Path) -> None:
    model = Joined(tmp_path)
    model.deploy("host", ops.CharmBase, metadata=HOST, units=2)
    model.deploy("beside", Beside, metadata=BESIDE)
    model.integrate("beside:host", "host:info")
    model.settle()
    assert model.statuses()["beside/0"] == "active: host/0"
    assert model.statuses()["beside/1"] == "active: host/1"
    assert model.unit("beside/1").root == model.unit("host/1").root
    model.remove_unit("host/0")
    assert set(model.statuses()) == {"host/1", "beside/1"}


def test_charms_that_answer_each_other_for_ever_are_found_out(tmp_path: Path) -> None:
    class Talker(ops.CharmBase):
        """Answers every word with one more."""

        def __init__(self, framework: ops.Framework) -> None:
            super().__init__(framework)
            for events in (self.on["in"], self.on["out"]):
                framework.observe(events.relation_changed, self._answer)

        def _answer(self, event: ops.RelationEvent) -> None:
            mine = event.relation.data[self.unit]
            mine["n"] = str(int(mine.get("n", "0")) + 1)

    model = Joined(tmp_path)
    both = {
        "provides": {"out": {"interface": "thing"}},
        "requires": {"in": {"interface": "thing"}},
    }
    model.deploy("one", Talker, metadata={"name": "one", **both})
    model.deploy("two", Talker, metadata={"name": "two", **both})
    model.integrate("one:in", "two:out")
    with pytest.raises(AssertionError, match="don't come to rest"):
        model.settle()


def test_actions_answer_and_fail(tmp_path: Path) -> None:
    class Doer(ops.CharmBase):
        """Has one action."""

        def __init__(self, framework: ops.Framework) -> None:
            super().__init__(framework)
            framework.observe(self.on["do-it"].action, self._do)

        def _do(self, event: ops.ActionEvent) -> None:
            if event.params.get("no-way"):
                event.fail("No way.")
            event.set_results({"done": "yes"})

    model = Joined(tmp_path)
    parameters = {"no-way": {"type": "boolean"}}
    model.deploy(
        "doer", Doer, metadata={"name": "doer", "actions": {"do-it": {"params": parameters}}}
    )
    model.settle()
    assert model.run("doer/0", "do-it") == {"done": "yes"}
    with pytest.raises(testing.ActionFailed, match="No way"):
        model.run("doer/0", "do-it", no_way=True)

"""What an operator reads of an action and in `juju status`."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import ops
import pytest
from ops import testing

from turku_charm.actions import Result, answer
from turku_charm.statuses import CHARACTERS_MAX, Blocked, NotReady, status_of
from turku_core.errors import ConfigurationError, TryAgainLater, TurkuError

META = {"name": "doer"}
ACTIONS = {
    "do": {"params": {"well": {"type": "boolean", "default": True}}},
    "look": {"params": {"lines": {"type": "integer", "default": 1}}},
    "name": {},
}


class Doer(ops.CharmBase):
    """Has three actions; the second finds fault with whatever it looks at."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on["do"].action, self._do)
        framework.observe(self.on["look"].action, self._look)
        framework.observe(self.on["name"].action, self._name)

    def _do(self, event: ops.ActionEvent) -> None:
        answer(event, lambda: self._body(event.params.get("well", True)))

    def _look(self, event: ops.ActionEvent) -> None:
        found = [
            f"line {number} is long, and there are many" for number in range(event.params["lines"])
        ]
        answer(event, lambda: Result("\n".join(found), {"found": found, "few": [1]}, "It is bad."))

    def _name(self, event: ops.ActionEvent) -> None:
        name = b"not UTF-8: \xe9, and \0".decode("utf-8", "surrogateescape")
        answer(event, lambda: Result(f"a file\n{name}", {"name": name}, f"{name} is bad."))

    def _body(self, well: bool) -> Result:
        if not well:
            raise TurkuError("The source docs isn't there: look at list-snapshots.")
        return Result("done\nwell", {"when": datetime(2026, 11, 22, tzinfo=timezone.utc), "n": 1})


def test_a_result_is_for_people_and_for_programs() -> None:
    context = testing.Context(Doer, meta=META, actions=ACTIONS)
    context.run(context.on.action("do"), testing.State())
    assert context.action_results is not None
    assert context.action_results["result"] == "done\nwell"
    assert json.loads(context.action_results["json"]) == {
        "n": 1,
        "when": "2026-11-22 00:00:00+00:00",
    }


def test_a_failure_is_a_sentence() -> None:
    context = testing.Context(Doer, meta=META, actions=ACTIONS)
    with pytest.raises(testing.ActionFailed) as caught:
        context.run(context.on.action("do", params={"well": False}), testing.State())
    assert caught.value.message == "The source docs isn't there: look at list-snapshots."


def test_what_is_found_is_shown_also_when_it_counts_as_a_failure() -> None:
    context = testing.Context(Doer, meta=META, actions=ACTIONS)
    with pytest.raises(testing.ActionFailed) as caught:
        context.run(context.on.action("look", params={"lines": 2}), testing.State())
    assert caught.value.message == "It is bad."
    assert context.action_results is not None
    assert len(json.loads(context.action_results["json"])["found"]) == 2


def test_names_that_are_not_utf_8_can_be_told() -> None:
    context = testing.Context(Doer, meta=META, actions=ACTIONS)
    with pytest.raises(testing.ActionFailed) as caught:
        context.run(context.on.action("name"), testing.State())
    assert caught.value.message == r"not UTF-8: \udce9, and \x00 is bad."
    assert context.action_results is not None
    assert context.action_results["result"] == "a file\n" + r"not UTF-8: \udce9, and \x00"
    assert json.loads(context.action_results["json"]) == {"name": "not UTF-8: \udce9, and \0"}


def test_results_are_cut_to_what_juju_can_carry_and_stay_readable() -> None:
    context = testing.Context(Doer, meta=META, actions=ACTIONS)
    with pytest.raises(testing.ActionFailed):
        context.run(context.on.action("look", params={"lines": 100_000}), testing.State())
    assert context.action_results is not None
    assert all(len(text) < 128 * 1024 for text in context.action_results.values())
    values = json.loads(context.action_results["json"])
    assert len(values["found"]) + values["left_out"]["found"] == 100_000
    assert values["few"] == [1]
    last = context.action_results["result"].splitlines()[-1]
    assert last.startswith("... and ") and last.endswith(" lines more")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (NotReady("Waiting for x."), "waiting"),
        (TryAgainLater("Later."), "waiting"),
        (Blocked("Do it."), "blocked"),
        (ConfigurationError("Mend it."), "blocked"),
        (TurkuError("It failed."), "blocked"),
    ],
)
def test_time_or_an_operator_mends_it(error: TurkuError, name: str) -> None:
    status = status_of(error)
    assert (status.name, status.message) == (name, str(error))


def test_a_status_is_one_bearable_line() -> None:
    status = status_of(TurkuError("one\ntwo   three " + "x" * 1000))
    assert status.message.startswith("one two three x")
    assert status.message.endswith("...")
    assert len(status.message) == CHARACTERS_MAX

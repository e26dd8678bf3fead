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
ACTIONS = {"do": {"params": {"well": {"type": "boolean", "default": True}}}}


class Doer(ops.CharmBase):
    """Has one action."""

    def __init__(self, framework: ops.Framework) -> None:
        super().__init__(framework)
        framework.observe(self.on["do"].action, self._do)

    def _do(self, event: ops.ActionEvent) -> None:
        answer(event, lambda: self._body(event.params.get("well", True)))

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

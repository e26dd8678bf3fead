"""``turku-update-config`` as a process: identity, validation, registration, installing."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from tests.integration.agent.stand_ins import AgentMachine, StandInUnit
from tests.support.stand_in_api import Answer, StandInApi


@pytest.fixture
def newcomer(tmp_path: Path, api: StandInApi) -> AgentMachine:
    """A machine that has a configuration and was never registered; it needs no storage unit."""
    unit = StandInUnit(tmp_path / "unit")
    return AgentMachine(tmp_path / "machine", api, unit)


def sent(api: StandInApi) -> dict[str, object]:
    request = api.calls("update_config")[-1]
    assert isinstance(request, dict)
    return request


def test_a_newcomer_makes_its_identity_and_registers(
    newcomer: AgentMachine, api: StandInApi, tree: Path
) -> None:
    newcomer.add_source("docs", tree, frequency="daily, 0200-0600", run_before_backup="/bin/true")
    done = newcomer.run("turku-update-config")
    assert done.code == 0, done
    assert newcomer.uuid in done.output
    request = api.calls("update_config")[0]
    assert request["auth"] == {"name": "fleet", "secret": "a-registration-secret"}
    machine = request["machine"]
    assert machine["uuid"] == newcomer.uuid
    assert machine["unit_name"] == "machine/0"
    assert machine["ssh_public_key"].startswith("ssh-ed25519 ")
    assert machine["sources"]["docs"]["frequency"] == "daily, 0200-0600"
    assert "run_before_backup" not in machine["sources"]["docs"]
    for name in ("ssh_key", "config.d/identity.json"):
        assert stat.S_IMODE((newcomer.state / name).stat().st_mode) == 0o600


def test_the_key_is_one_that_openssh_reads(newcomer: AgentMachine) -> None:
    assert newcomer.run("turku-update-config").code == 0
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(newcomer.state / "ssh_key")],
        capture_output=True,
        text=True,
        check=True,
    )
    public = (newcomer.state / "ssh_key.pub").read_text()
    assert derived.stdout.split()[:2] == public.split()[:2]


def test_the_identity_can_be_made_and_shown_before_the_api_is_known(
    newcomer: AgentMachine, api: StandInApi
) -> None:
    done = newcomer.run("turku-update-config", "identity", "--json")
    assert done.code == 0, done
    shown = json.loads(done.output)
    assert shown["uuid"] == newcomer.uuid
    public = (newcomer.state / "ssh_key.pub").read_text()
    assert shown["ssh_public_key"].split() == public.split()[:2]
    again = newcomer.run("turku-update-config", "identity")
    assert shown["uuid"] in again.output
    assert shown["ssh_public_key"] in again.output
    assert api.calls("update_config") == []


def test_the_identity_stays_the_same(newcomer: AgentMachine, api: StandInApi) -> None:
    for _ in range(2):
        assert newcomer.run("turku-update-config").code == 0
    first, second = api.calls("update_config")
    assert first == second


def test_two_at_once_make_one_identity(newcomer: AgentMachine, api: StandInApi) -> None:
    started = [newcomer.start("turku-update-config") for _ in range(4)]
    for each in started:
        _, errors = each.communicate(timeout=60)
        assert each.returncode == 0, errors
    machines = [request["machine"] for request in api.calls("update_config")]
    assert len(machines) == 4
    assert {each["uuid"] for each in machines} == {newcomer.uuid}
    assert len({each["ssh_public_key"] for each in machines}) == 1


def test_a_fielded_identity_is_kept(newcomer: AgentMachine, api: StandInApi) -> None:
    uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
    (newcomer.state / "config.d").mkdir(parents=True)
    (newcomer.state / "config.d/10-generated.json").write_text(
        json.dumps({"machine_uuid": uuid, "machine_secret": "fielded-secret"})
    )
    key = newcomer.state / "ssh_key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(key)], check=True
    )
    before = key.read_bytes()
    key.with_suffix(".pub").unlink()
    assert newcomer.run("turku-update-config").code == 0
    machine = api.calls("update_config")[0]["machine"]
    assert (machine["uuid"], machine["secret"]) == (uuid, "fielded-secret")
    assert machine["ssh_public_key"].startswith("ssh-rsa ")
    assert key.read_bytes() == before


def test_prior_art_05_a_cloned_machine_is_refused_until_it_makes_a_new_identity(
    newcomer: AgentMachine, api: StandInApi
) -> None:
    machine_id = newcomer.root / "etc/machine-id"
    machine_id.write_text("0" * 32 + "\n")
    assert newcomer.run("turku-update-config").code == 0
    first = sent(api)["machine"]
    assert "0" * 32 not in (newcomer.state / "config.d/identity.json").read_text()
    machine_id.write_text("1" * 32 + "\n")
    for program in ("turku-update-config", "turku-agent-ping"):
        done = newcomer.run(program)
        assert done.code == 2
        assert "--new-identity" in done.errors
    assert newcomer.run("turku-update-config", "--new-identity").code == 0
    second = sent(api)["machine"]
    assert isinstance(first, dict) and isinstance(second, dict)
    for key in ("uuid", "secret", "ssh_public_key"):
        assert first[key] != second[key]
    assert newcomer.run("turku-agent-ping").code == 0
    kept = (newcomer.state / "config.d/identity.json.replaced").read_text()
    assert first["uuid"] in kept


def test_a_bad_source_is_named_with_file_and_line_and_nothing_is_sent(
    newcomer: AgentMachine, api: StandInApi
) -> None:
    folder = newcomer.root / "etc/turku-agent/sources.d"
    folder.mkdir(parents=True)
    (folder / "10-good.json").write_text('{"good": {"path": "/etc"}}')
    (folder / "20-bad.yaml").write_text(
        "web:\n  path: /srv\n  frequency: dayly\nmail:\n  path: srv\n"
        "db:\n  path: /db\n  retention: lots\ndns:\n  path: /x\n  exlude: [a]\n"
    )
    done = newcomer.run("turku-update-config")
    assert done.code == 2
    for words in (
        "20-bad.yaml, line 3: source 'web': frequency",
        "20-bad.yaml, line 5: source 'mail': path",
        "20-bad.yaml, line 8: source 'db': retention",
        "20-bad.yaml, line 11: source 'dns': exlude",
    ):
        assert words in done.errors
    assert api.requests == []


def test_the_timers_send_what_is_valid_and_the_api_keeps_the_rest(
    newcomer: AgentMachine, api: StandInApi
) -> None:
    folder = newcomer.root / "etc/turku-agent/sources.d"
    folder.mkdir(parents=True)
    (folder / "10-web.yaml").write_text(
        "web: {path: /srv/web, frequency: weekly}\nlogs: {path: /var/log}\n"
    )
    (folder / "20-mail.json").write_text(
        '{"mail": {"path": "/var/mail", "retention": "last 9 days"}}'
    )
    assert newcomer.run("turku-update-config").code == 0

    (folder / "10-web.yaml").write_text("web: {path: /srv/web, frequency: dayly}\n")
    (folder / "20-mail.json").write_text('{"mail": {"path"')
    (folder / "30-new.json").write_text('{"new": {"path": "/new"}, "worse": {"path": "new"}}')
    done = newcomer.run("turku-update-config", "--keep-going")
    assert done.code == 0, done
    for words in ("10-web.yaml, line 1: source 'web'", "20-mail.json, line 1", "'worse'"):
        assert words in done.errors
    sources = api.calls("update_config")[-1]["machine"]["sources"]
    # web and mail are as they were sent last; logs was taken out of a file that can be read.
    assert {name: source["path"] for name, source in sources.items()} == {
        "web": "/srv/web", "mail": "/var/mail", "new": "/new",
    }  # fmt: skip
    assert sources["web"]["frequency"] == "weekly"
    assert sources["mail"]["retention"] == "last 9 days"

    again = newcomer.run("turku-update-config", "--keep-going")
    assert again.code == 0
    assert api.calls("update_config")[-1]["machine"]["sources"] == sources

    (folder / "20-mail.json").unlink()
    assert newcomer.run("turku-update-config", "--keep-going").code == 0
    assert set(api.calls("update_config")[-1]["machine"]["sources"]) == {"web", "new"}


def test_a_record_of_what_was_sent_that_is_damaged_costs_nothing_else(
    newcomer: AgentMachine, api: StandInApi, tree: Path
) -> None:
    newcomer.add_source("docs", tree)
    newcomer.state.mkdir(parents=True)
    (newcomer.state / "sent.json").write_text("[")
    assert newcomer.run("turku-update-config", "--keep-going").code == 0
    assert set(api.calls("update_config")[-1]["machine"]["sources"]) == {"docs"}


def test_a_wrong_key_an_api_that_is_down_and_no_configuration_are_told_apart(
    newcomer: AgentMachine, api: StandInApi
) -> None:
    api.answers["update_config"] = (403, "Bad credentials")
    done = newcomer.run("turku-update-config")
    assert done.code == 1
    assert "registration key" in done.errors
    newcomer.configure(api_url=api.url)
    done = newcomer.run("turku-update-config")
    assert done.code == 1
    assert "api_auth_secret" in done.errors
    newcomer.configure(api_url="http://127.0.0.1:1/v1")
    assert newcomer.run("turku-update-config").code == 75
    (newcomer.root / "etc/turku-agent/config.d/10-test.json").unlink()
    done = newcomer.run("turku-update-config")
    assert done.code == 2
    assert "api_url" in done.errors


def test_a_dry_run_sends_and_makes_nothing(
    newcomer: AgentMachine, api: StandInApi, tree: Path
) -> None:
    newcomer.add_source("docs", tree)
    done = newcomer.run("turku-update-config", "--dry-run", "--json")
    assert done.code == 0, done
    said = json.loads(done.output)
    assert said["sent"] is False
    assert said["machine"]["sources"]["docs"]["path"] == str(tree)
    assert "Nothing was sent" in newcomer.run("turku-update-config", "--dry-run").output
    assert api.requests == []
    assert not newcomer.state.exists()


def test_the_units_are_ones_that_systemd_understands(newcomer: AgentMachine) -> None:
    assert newcomer.run("turku-update-config", "install-systemd").code == 0
    units = sorted(str(path) for path in (newcomer.root / "etc/systemd/system").iterdir())
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", *units],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_units_are_installed_below_the_root_and_taken_away_again(
    newcomer: AgentMachine,
) -> None:
    done = newcomer.run("turku-update-config", "install-systemd")
    assert done.code == 0, done
    folder = newcomer.root / "etc/systemd/system"
    service = (folder / "turku-agent-ping.service").read_text()
    program = next(line for line in service.splitlines() if line.startswith("ExecStart="))
    assert Path(program.removeprefix("ExecStart=")).is_file()
    assert "RandomizedDelaySec=" in (folder / "turku-agent-ping.timer").read_text()
    assert "OnUnitInactiveSec=1h" in (folder / "turku-update-config.timer").read_text()
    again = newcomer.run("turku-update-config", "install-systemd")
    assert again.output == "Nothing had to be changed.\n"
    assert newcomer.run("turku-update-config", "uninstall").code == 0
    assert list(folder.iterdir()) == []


def test_cron_lines_are_installed_for_hosts_without_systemd(newcomer: AgentMachine) -> None:
    assert newcomer.run("turku-update-config", "install-cron").code == 0
    path = newcomer.root / "etc/cron.d/turku-agent"
    text = path.read_text()
    assert "/5 * * * * root sleep " in text
    assert text.endswith("\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    again = newcomer.run("turku-update-config", "install-cron")
    assert again.output == "Nothing had to be changed.\n"
    assert newcomer.run("turku-update-config", "install-systemd").code == 0
    assert not path.exists()
    assert newcomer.run("turku-update-config", "install-cron").code == 0
    assert list((newcomer.root / "etc/systemd/system").iterdir()) == []


def test_a_newcomer_waits_until_the_api_lets_it_in(newcomer: AgentMachine, api: StandInApi) -> None:
    def not_before_the_third_time(_: object) -> Answer:
        early = len(api.calls("update_config")) < 3
        return (503, "It has not been announced yet.") if early else {}

    api.answers["update_config"] = not_before_the_third_time
    done = newcomer.run("turku-update-config", "--wait", "30")
    assert done.code == 0, done
    assert len(api.calls("update_config")) == 3


def test_who_waits_in_vain_says_what_the_api_said(newcomer: AgentMachine, api: StandInApi) -> None:
    api.answers["update_config"] = (503, "It has not been announced yet.")
    done = newcomer.run("turku-update-config", "--wait", "1")
    assert done.code == 75
    assert "It has not been announced yet." in done.errors
    assert len(api.calls("update_config")) == 2


def test_waiting_changes_nothing_when_the_api_has_refused(
    newcomer: AgentMachine, api: StandInApi
) -> None:
    api.answers["update_config"] = (403, "Bad credentials")
    assert newcomer.run("turku-update-config", "--wait", "60").code == 1
    assert len(api.calls("update_config")) == 1


@pytest.mark.parametrize("seconds", ["-1", "soon", "1e3", "3601"])
def test_a_time_to_wait_that_makes_no_sense_is_bad_usage(
    newcomer: AgentMachine, seconds: str
) -> None:
    assert newcomer.run("turku-update-config", f"--wait={seconds}").code == 2

"""The security page, line by line: which tests try a statement, or why there is nothing to try.

A statement that is new, or said otherwise, has no line here, and this fails until somebody has
thought of how to break it.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.faults.page import PAGE, Statement, statements
from tests.faults.tally import Tally

TESTS = Path(__file__).parents[1]

USERS = "faults/test_enemies_users.py"
PARTIES = "faults/test_enemies_parties.py"
DOOR = "faults/test_enemies_api.py"
MESSAGES = "faults/test_enemies_messages.py"
DATABAGS = "faults/test_enemies_databags.py"
ENEMYS_UNIT = "faults/test_enemies_storage.py"
ENEMYS_API = "faults/test_enemies_hostile_api.py"
LIMITS = "unit/api/test_limits.py"
REGISTRATION = "unit/api/test_registration.py"
ANNOUNCEMENTS = "unit/api/test_announcements.py"
PRIOR_ART = "unit/api/test_prior_art.py"
GRANTS = "unit/api/test_grants.py"
UNITS = "unit/api/test_storage.py"
SSHD = "integration/storage/test_sshd_restrictions.py"
SESSION = "integration/storage/test_session.py"
SESSION_RESTORE = "integration/storage/test_session_restore.py"
DAEMON = "integration/agent/test_rsync_daemon.py"
ORDERS = "integration/agent/test_orders.py"
UPKEEP = "integration/snapshots/test_upkeep.py"
EXPIRY = "unit/storage/test_expiry.py"
RANSOM = "faults/test_ransom.py"


def of(path: str, *names: str) -> tuple[str, ...]:
    """Return the full names of tests of one file."""
    return tuple(f"{path}::{name}" for name in names)


SHOWN: dict[str, tuple[str, ...]] = {
    # What there is to steal.
    "its UUID and secret (/var/lib": (
        of(USERS, "test_every_file_with_a_secret_is_its_owners_alone_also_inside_closed_folders")
    ),
    "its SSH key (/var/lib": (
        of(USERS, "test_every_file_with_a_secret_is_its_owners_alone_also_inside_closed_folders")
        + of(PARTIES, "test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired")
    ),
    "Secrets are 256 random bits.": (
        of(
            "unit/core/test_credentials.py",
            "test_prior_art_08_secrets_are_256_random_bits_and_only_their_hash_is_kept",
        )
    ),
    "compares in constant time": (
        of(DOOR, "test_no_secret_is_compared_but_in_constant_time")
        + of(REGISTRATION, "test_an_unknown_machine_and_a_wrong_secret_are_answered_alike")
        + of(PRIOR_ART, "test_prior_art_09_refusing_a_caller_costs_one_read_and_no_slow_hash")
    ),
    "A registration key is looked up by that hash": (
        of(DOOR, "test_no_secret_is_compared_but_in_constant_time")
    ),
    "in no log, no argument list and no file": (
        of(
            USERS,
            "test_no_secret_is_in_an_argument_or_a_log",
            "test_another_user_writes_nothing_and_reads_no_secret",
        )
    ),
    "Every value from another party passes fields.py": (
        of(MESSAGES, "test_nothing_that_another_party_says_is_an_error_of_ours")
        + of(
            DATABAGS,
            "test_whatever_a_foreign_charm_writes_the_hook_ends_well_and_says_a_sentence",
        )
    ),
    "Sizes are bounded before anything is parsed.": (
        of("unit/api/test_hostile.py", "test_a_body_that_is_too_long_is_not_read")
        + of("unit/core/test_client.py", "test_an_answer_is_bounded_before_it_is_parsed")
        + of("unit/core/test_relations.py", "test_a_databag_is_bounded_before_it_is_parsed")
        + of(
            "unit/storage/test_session_request.py",
            "test_a_request_that_never_ends_is_not_read_into_memory",
        )
    ),
    # A stranger.
    "Guessing is hopeless": (
        of(
            DOOR,
            "test_a_flood_of_bad_credentials_has_one_budget_for_all_workers_and_keeps_nobody_out",
        )
        + of(LIMITS, "test_bad_credentials_are_403_and_from_a_number_on_429")
    ),
    "A fleet behind the same address": (
        of(
            DOOR,
            "test_a_flood_of_bad_credentials_has_one_budget_for_all_workers_and_keeps_nobody_out",
        )
        + of(LIMITS, "test_good_credentials_are_let_in_whatever_else_comes_from_their_address")
    ),
    "Large requests are taken apart": (
        of(DOOR, "test_large_bodies_from_strangers_keep_no_machine_waiting")
        + of(LIMITS, "test_large_requests_are_taken_apart_one_at_a_time")
    ),
    # A hostile machine.
    "read and restore its own backups": (
        of(PARTIES, "test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired")
        + of(GRANTS, "test_a_grant_ends_by_itself")
        + of(
            SESSION_RESTORE,
            "test_prior_art_32_a_new_machine_restores_a_lost_ones_data_while_the_grant_lasts",
        )
    ),
    "its alerts then say that a backup is overdue": (
        of(
            "unit/api_edge/test_overdue.py",
            "test_prior_art_36_a_failed_backup_reaches_the_operator_with_its_reason",
        )
    ),
    "register as a further machine, one for each unit": (
        of(
            ANNOUNCEMENTS,
            "test_an_announced_machine_registers",
            "test_a_machine_that_was_not_announced_is_told_to_wait",
        )
    ),
    "call itself what it likes": (
        of(
            "unit/api_edge/test_commands.py",
            "test_a_machine_is_found_by_uuid_or_by_a_name_that_tells",
        )
        + of(
            PRIOR_ART, "test_prior_art_01_a_unit_named_like_another_machine_does_not_take_its_place"
        )
    ),
    "whose machines share a source (shared_service)": (
        of(
            "unit/api/test_shared_services.py",
            "test_only_machines_of_one_environment_and_service_share",
        )
    ),
    "hold one of its storage unit's slots": (
        of("unit/storage/test_slots.py", "test_no_machine_takes_the_slots_of_all")
        + of(SESSION, "test_one_machines_second_session_is_told_to_come_back")
    ),
    "read or change another machine's backups": (
        of(
            PARTIES,
            "test_a_machine_sees_and_gets_nothing_of_another",
            "test_whatever_an_agent_says_in_a_session_is_refused_in_words",
        )
        + of("unit/storage/test_authorized_keys.py", "test_prior_art_06_a_line_is_exactly_this")
        + of(SESSION_RESTORE, "test_without_a_grant_nothing_of_another_machine_is_seen_or_restored")
    ),
    "write on the storage unit but through rsync": (
        of(
            "integration/snapshots/test_metadata.py",
            "test_prior_art_11_a_hostile_link_is_only_a_file_and_nothing_runs_as_root",
        )
        + of(
            SESSION,
            "test_prior_art_01_hostile_names_reach_no_file",
            "test_prior_art_01_a_hostile_restore_reads_no_file",
        )
    ),
    "reach anything else there": (
        of(
            SSHD,
            "test_prior_art_06_no_key_forwards_from_the_storage_unit_to_anywhere",
            "test_prior_art_06_no_tunnel_listens_but_on_loopback",
            "test_prior_art_06_no_unix_socket_listens_on_the_storage_unit",
            "test_prior_art_06_no_terminal",
            "test_prior_art_06_no_x11_no_agent_no_environment",
            "test_prior_art_06_no_command_but_the_forced_one_runs",
        )
        + of(SESSION, "test_the_port_of_another_users_service_is_refused")
        + of(PARTIES, "test_who_names_another_machines_tunnel_finds_a_password_at_its_end")
    ),
    "let go of another machine": (
        of(
            ANNOUNCEMENTS,
            "test_a_machine_that_another_unit_announces_goes_on",
            "test_a_machine_that_no_unit_announces_is_retired_and_its_backups_stay",
        )
    ),
    "destroy its history at once": (
        of(
            EXPIRY,
            "test_prior_art_04_a_policy_cut_short_removes_nothing_before_the_grace_period",
            "test_whatever_happens_the_newest_good_snapshots_stay",
        )
        + of(UPKEEP, "test_prior_art_04_an_agents_policy_never_takes_the_newest_three")
    ),
    "have its history expire after its files turned to noise": (
        of(
            RANSOM,
            "test_a_source_whose_files_turn_to_noise_or_are_gone_keeps_all_its_snapshots",
            "test_a_broken_machine_can_neither_lift_its_hold_nor_silence_the_alarm",
        )
    ),
    "On a volume over its high-water mark": (
        of(EXPIRY, "test_a_volume_over_its_mark_offers_what_has_expired_oldest_first")
        + of(UPKEEP, "test_prior_art_19_a_full_volume_heals_without_a_new_backup")
    ),
    # A hostile storage unit.
    "open a session. Nothing asks a machine": (
        of(USERS, "test_the_machine_opens_no_port")
        + of(ENEMYS_UNIT, "test_a_restore_from_a_hostile_storage_unit_never_leaves_its_folder")
    ),
    "read more than the sources that are due": (
        of(
            DAEMON,
            "test_prior_art_07_a_hostile_client_doesnt_get_what_is_excluded",
            "test_nothing_is_changed_in_a_source",
            "test_one_module_isnt_opened_by_another_ones_password",
        )
        + of(
            ENEMYS_UNIT,
            "test_a_hostile_storage_unit_gets_the_due_sources_without_what_is_left_out",
            "test_a_hostile_storage_unit_gets_and_changes_nothing_else",
        )
    ),
    "write anything on the machine while it backs up": (
        of(ENEMYS_UNIT, "test_a_hostile_storage_unit_gets_and_changes_nothing_else")
    ),
    "reach anything else through the session": (
        of(
            ENEMYS_UNIT,
            "test_a_hostile_storage_unit_gets_and_changes_nothing_else",
            "test_what_isnt_ssh_or_has_another_host_key_hears_nothing",
        )
    ),
    "hold up the backups on other storage units": (
        of(
            ENEMYS_UNIT,
            "test_who_holds_a_session_for_ever_holds_no_other_storage_unit_up",
            "test_a_session_has_its_bounds_in_silence_and_in_words",
        )
    ),
    "run anything on the machine. Hooks": (
        of(
            "unit/agent/test_configuration.py",
            "test_sources_merge_and_keep_their_hooks_to_themselves",
        )
        + of(MESSAGES, "test_nothing_that_another_party_says_is_an_error_of_ours")
    ),
    "speak for other units' sources": (
        of(
            UNITS,
            "test_another_unit_cannot_report_runs_of_a_source",
            "test_a_session_of_a_machine_that_is_not_the_unit_s_is_not_found",
            "test_a_unit_cannot_renew_what_it_has_not_got",
        )
    ),
    "In the restore folder (0700)": (
        of(
            "integration/end_to_end/test_life.py",
            "test_without_a_target_a_restore_goes_to_the_restore_folder_and_never_in_place",
        )
        + of(
            "unit/agent/test_orders.py",
            "test_folders_that_a_restore_makes_are_ones_own_whatever_the_umask",
        )
        + of(ENEMYS_UNIT, "test_a_restore_from_a_hostile_storage_unit_never_leaves_its_folder")
    ),
    "Nothing is deleted, and nothing is written outside": (
        of(
            DAEMON,
            "test_a_restores_module_cant_be_read_and_nothing_is_deleted_in_it",
            "test_a_restore_never_leads_out_of_its_folder",
        )
        + of(ENEMYS_UNIT, "test_a_restore_from_a_hostile_storage_unit_never_leaves_its_folder")
    ),
    # A hostile API unit.
    "send machines to a storage unit of its own": (
        of(ENEMYS_API, "test_an_api_that_names_other_paths_and_rules_gets_the_machines_own")
    ),
    "grant any machine any other's backups": (
        of(ENEMYS_API, "test_an_api_that_lets_a_key_of_its_own_in_reads_and_removes_nothing")
        + of(GRANTS, "test_a_grant_ends_by_itself")
    ),
    "order restores, as far as": (
        of(
            ORDERS,
            "test_a_hostile_api_writes_nowhere_but_into_a_new_folder_of_the_restore_folder",
            "test_a_machine_that_allows_none_refuses_every_order",
            "test_what_an_order_brought_does_not_lead_a_later_restore_astray",
        )
        + of(
            ENEMYS_API,
            "test_an_api_that_orders_restores_to_anywhere_writes_into_the_restore_folder_alone",
        )
    ),
    "run anything on a machine or a storage unit": (
        of("unit/agent/test_checkin.py", "test_the_path_is_always_the_machines_own")
        + of(
            "integration/agent/test_backup.py", "test_a_filter_set_of_the_api_is_enforced_here_too"
        )
        + of(SESSION, "test_a_filter_rule_is_data_and_never_an_option")
        + of(PRIOR_ART, "test_prior_art_03_a_storage_unit_s_address_cannot_be_an_option")
        + of(
            ENEMYS_API,
            "test_an_api_that_names_other_paths_and_rules_gets_the_machines_own",
            "test_whatever_an_api_answers_a_machine_goes_on_and_gives_no_more",
        )
    ),
    "remove backups: no call deletes": (
        of(UPKEEP, "test_prior_art_04_an_agents_policy_never_takes_the_newest_three")
        + of(EXPIRY, "test_a_source_that_is_not_backed_up_any_more_keeps_its_history_for_ever")
        + of(
            ENEMYS_API,
            "test_no_list_of_machines_removes_a_backup_or_lets_more_in_than_a_key_to_one_machine",
            "test_whatever_an_api_answers_a_session_no_snapshot_goes_and_nothing_is_written_elsewhere",
        )
        + of(RANSOM, "test_a_broken_machine_can_neither_lift_its_hold_nor_silence_the_alarm")
        + of(PARTIES, "test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired")
    ),
    "learn a secret that it could use elsewhere": (
        of(PRIOR_ART, "test_prior_art_08_secrets_are_in_no_answer_no_log_and_no_table")
    ),
    # Another user of the same host.
    "On a machine: no port opens.": (of(USERS, "test_the_machine_opens_no_port")),
    "listens on a Unix socket in a folder of root's": (
        of(
            USERS,
            "test_sockets_lie_in_folders_that_nobody_else_enters",
            "test_another_user_enters_no_folder_of_ours",
        )
    ),
    "A scrape of the metrics": (of(PARTIES, "test_no_metrics_hold_a_secret")),
    "without the session's password the daemon there says nothing": (
        of(USERS, "test_who_reaches_a_tunnel_without_the_sessions_password_hears_nothing")
    ),
    "/var/lib/turku-api is the service's user's": (
        of(USERS, "test_another_user_enters_no_folder_of_ours")
    ),
    # Someone on the wire.
    "TLS, checked against the authority": (
        of(
            "integration/api/test_https.py",
            "test_a_machine_that_has_the_ca_is_sure_of_the_api_and_no_other_client_is",
            "test_old_versions_of_tls_are_refused",
        )
        + of(DOOR, "test_only_tls_of_today_is_spoken_and_a_plain_word_gets_nothing")
        + of("unit/core/test_client.py", "test_a_redirect_carries_no_secret_elsewhere")
    ),
    "with exactly the host keys that the API announced": (
        of(
            "integration/end_to_end/test_errors.py",
            "test_a_storage_unit_that_shows_another_host_key_gets_nothing",
        )
        + of(ENEMYS_UNIT, "test_what_isnt_ssh_or_has_another_host_key_hears_nothing")
    ),
    "learns when and how much, not what": (
        of(PARTIES, "test_who_listens_on_the_wire_hears_neither_secrets_nor_data_and_changes_none")
    ),
    "Who cuts the line delays backups": (
        of(SESSION, "test_prior_art_23_a_lost_connection_ends_the_pull_and_frees_the_source")
    ),
    "Databags hold public keys": (
        of(
            "unit/charms/api/test_relations.py",
            "test_a_new_relation_gets_a_key_of_its_own_that_only_it_may_read",
        )
    ),
    "Juju secrets hold the registration keys": (
        of("unit/charms/api/test_relations.py", "test_two_relations_have_two_keys")
    ),
    # A stolen identity or key.
    "the API refuses at once, and the storage unit takes the key off": (
        of(PARTIES, "test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired")
    ),
    "The backups stay.": (
        of(PARTIES, "test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired")
    ),
    "Sessions that are open go on": (
        of(PARTIES, "test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired")
    ),
    "A thief with the SSH key alone": (
        of(PARTIES, "test_a_stolen_ssh_key_lists_and_restores_until_the_machine_is_retired")
    ),
    "bound to the SSH key that its unit announced": (
        of(ANNOUNCEMENTS, "test_a_registered_machine_keeps_to_the_announced_ssh_key")
        + of(
            "integration/end_to_end/test_announced.py",
            "test_a_machine_with_another_ssh_key_than_announced_is_refused",
        )
    ),
    "A registration key lets newcomers in, and nothing else": (
        of(PARTIES, "test_a_stolen_registration_key_shows_nothing_and_changes_nobody")
    ),
    "1,000 newcomers in ten minutes": (
        of(
            LIMITS,
            "test_a_key_made_by_hand_lets_in_so_many_in_ten_minutes",
            "test_the_key_of_a_relation_has_no_such_bound",
        )
    ),
    "A relation's key lets in announced machines only": (
        of(
            ANNOUNCEMENTS,
            "test_a_machine_that_was_not_announced_is_told_to_wait",
            "test_another_ssh_key_than_the_announced_one_is_refused",
            "test_an_announcement_on_another_relation_lets_nobody_in_here",
        )
    ),
    "A key for storage units is worth more": (
        of(UNITS, "test_a_unit_registers_with_a_storage_key_and_then_shows_its_secret")
        + of(PARTIES, "test_a_stolen_registration_key_shows_nothing_and_changes_nobody")
    ),
    "rotate-registration-key gives a key a new secret": (
        of(REGISTRATION, "test_a_rotated_registration_key_lets_in_with_its_new_secret_alone")
        + of(
            PRIOR_ART, "test_prior_art_10_disabling_a_key_stops_newcomers_and_if_asked_its_machines"
        )
    ),
    "passwords are checked one at a time in each worker": (
        of(
            "unit/api_edge/test_passwords.py",
            "test_prior_art_09_a_flood_of_logins_computes_one_slow_hash_at_a_time",
            "test_from_one_address_ten_wrong_passwords_are_looked_at_and_then_not_even_the_right_one",
        )
    ),
    "The agent sees that /etc/machine-id is another one": (
        of(
            "integration/agent/test_update_config.py",
            "test_prior_art_05_a_cloned_machine_is_refused_until_it_makes_a_new_identity",
        )
        + of(PRIOR_ART, "test_prior_art_05_two_active_machines_never_have_one_ssh_key")
    ),
}
"""By words that stand in one statement alone: the tests that try it, below `tests/`."""

A_HEADING = "it only says what follows"
GIVEN_AWAY = "it says what is given away: there is nothing to break"
ADVICE = "it is advice for an operator"

NOTHING_TO_TRY: dict[str, str] = {
    "Who can do what, party by party": A_HEADING,
    "The code decides": A_HEADING,
    "Which test tries it is named": A_HEADING,
    "a storage unit its name and secret": GIVEN_AWAY,
    "the backups, not encrypted reading": GIVEN_AWAY,
    "hashes of all secrets; the authority's key": GIVEN_AWAY,
    "a registration key, in a Juju secret": A_HEADING,
    "Whoever reaches the API's port": A_HEADING,
    "who sends its requests slowly enough": GIVEN_AWAY,
    "A machine that was broken into": A_HEADING,
    "It can, because the agent can": A_HEADING,
    "change its own sources": GIVEN_AWAY,
    "send as much as the volume holds": GIVEN_AWAY,
    "What is not promised here": A_HEADING,
    "Who changes its files slowly": GIVEN_AWAY,
    "Who stays unnoticed for longer": GIVEN_AWAY,
    "It can read everything that its machines send": GIVEN_AWAY,
    "It can forget, change or invent": GIVEN_AWAY,
    "What it reads can't be limited": GIVEN_AWAY,
    "A restore trusts the storage unit": GIVEN_AWAY,
    "With in-place, the storage unit": GIVEN_AWAY,
    "The API decides, so it is": A_HEADING,
    "One that was broken into can": A_HEADING,
    "stop backups, or shorten": GIVEN_AWAY,
    "Whoever may write to /etc/turku-agent": GIVEN_AWAY,
    "The agent follows the path of a source": GIVEN_AWAY,
    "Name sources whose parent folders": ADVICE,
    "Let nobody else have an account": ADVICE,
    "On an API unit:": A_HEADING,
    "Between machine and API:": A_HEADING,
    "Between machine and storage unit:": A_HEADING,
    "http:// works only where": GIVEN_AWAY,
    "What Juju carries is as safe": GIVEN_AWAY,
    "the thief is that machine, see above": GIVEN_AWAY,
    "Root on any machine, or storage unit, of a relation": GIVEN_AWAY,
    "Who has an administrator's password": GIVEN_AWAY,
    "A copied disk carries": A_HEADING,
    "Encryption of the backups at rest": GIVEN_AWAY,
    "A second copy. A source has one": GIVEN_AWAY,
    "Anything against root on the Juju controller": GIVEN_AWAY,
    "Fair shares of time and space": GIVEN_AWAY,
}
"""By words of a statement: why no test tries it."""

BARE = ("It can't:",)
"""Statements that stand there more than once, and say nothing by themselves."""


def _words_in(statement: Statement) -> list[str]:
    return [words for words in (*SHOWN, *NOTHING_TO_TRY) if words in statement.text]


def test_every_statement_of_the_page_is_tried_or_says_why_not(tally: Tally) -> None:
    found = [each for each in statements(PAGE.read_text("utf-8")) if each.text not in BARE]
    assert len(found) > 80
    unknown = [each.text for each in found if not _words_in(each)]
    twice = {each.text: words for each in found if len(words := _words_in(each)) > 1}
    tally.note("lines of the security page, each with its test", times=len(found),
               lost=len(unknown))  # fmt: skip
    assert unknown == []
    assert twice == {}


def test_nothing_is_tried_that_the_page_doesnt_say() -> None:
    texts = [each.text for each in statements(PAGE.read_text("utf-8"))]
    for words in (*SHOWN, *NOTHING_TO_TRY):
        assert sum(words in text for text in texts) == 1, words


def test_every_test_that_is_named_is_there() -> None:
    known: dict[str, set[str]] = {}
    for test in {each for tests in SHOWN.values() for each in tests}:
        path, _, name = test.partition("::")
        if path not in known:
            tree = ast.parse((TESTS / path).read_text("utf-8"))
            known[path] = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
        assert name in known[path], test


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\n\nOne. Two: three.\nFour.\n", ["One.", "Two: three.", "Four."]),
        ("- *one*\n  `two`. Three\n- [four](x.md)\n", ["one two. Three", "four"]),
        ("| a | b |\n|---|---|\n| c | d |\n", ["c d"]),
    ],
)
def test_the_page_is_cut_into_its_statements(text: str, expected: list[str]) -> None:
    assert [each.text for each in statements(text)] == expected

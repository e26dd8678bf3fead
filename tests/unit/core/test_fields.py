"""What a valid name, path, host, key and filter is."""

from __future__ import annotations

import posixpath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turku_core import fields
from turku_core.fields import FieldError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CHECKS = [
    fields.mapping,
    fields.boolean,
    fields.integer,
    fields.number,
    fields.text,
    fields.long_text,
    fields.uuid,
    fields.name,
    fields.label,
    fields.secret,
    fields.host,
    fields.port,
    fields.listen_address,
    fields.user,
    fields.public_key,
    fields.public_keys,
    fields.absolute_path,
    fields.relative_path,
    fields.bandwidth,
    fields.exclude_rule,
    fields.filter_rule,
    fields.filter_rule_or_set,
    fields.snapshot_mode,
    fields.snapshot_id,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@given(value=ANYTHING)
def test_anything_at_all_is_a_value_or_an_error_that_names_the_field(
    check: Any, value: object
) -> None:
    try:
        check(value, "the.field")
    except FieldError as error:
        assert error.field.startswith("the.field")
        assert str(error).startswith("the.field")
        assert len(str(error)) < 400
        assert str(error).isprintable()


@given(st.text(min_size=1))
def test_a_name_is_one_component_of_a_path_and_never_an_option(value: str) -> None:
    try:
        name = fields.name(value, "name")
    except FieldError:
        return
    assert posixpath.basename(posixpath.normpath("/volume/" + name)) == name
    assert not name.startswith(("-", "."))
    assert name.isascii()


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        "../../../root/.ssh",
        "a/b",
        "-oX",
        ".hidden",
        "a\n",
        "a b",
        "a\x00",
        "ä",
        3,
        None,
        "x" * 65,
        "a]",
        "a%b",
    ],
)
def test_prior_art_01_a_name_that_could_leave_its_folder_is_refused(value: object) -> None:
    with pytest.raises(FieldError, match="source name"):
        fields.name(value, "source name")


@pytest.mark.parametrize("value", ["docs", "srv-www.2", "_x", "a@b", "C++", "x" * 64])
def test_ordinary_names_are_accepted(value: str) -> None:
    assert fields.name(value, "name") == value


@pytest.mark.parametrize(
    "value",
    [
        "-oProxyCommand=touch /tmp/x",
        "-x",
        "a b",
        "a\nb",
        "user@host",
        "[::1]",
        "a..b",
        "",
        "1.2.3",
        "host;id",
        "fe80::1%eth0;id",
        "a-.example",
        "256.1.1.1",
        "$(id)",
        7,
    ],
)
def test_prior_art_03_a_host_that_could_be_an_option_or_a_command_is_refused(
    value: object,
) -> None:
    with pytest.raises(FieldError):
        fields.host(value, "ssh_ping_host")


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("Storage-1.Example.COM", "storage-1.example.com"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("localhost", "localhost"),
        ("juju_1", "juju_1"),
    ],
)
def test_hosts_come_back_in_one_form(value: str, host: str) -> None:
    assert fields.host(value, "host") == host


@pytest.mark.parametrize(
    "value", ["etc", "/etc/../root", "/..", "/a\nb", "/a\0", "", "/a\ud800", 1]
)
def test_a_source_path_is_absolute_and_plain(value: object) -> None:
    with pytest.raises(FieldError):
        fields.absolute_path(value, "path")


def test_a_path_may_hold_bytes_that_are_not_utf8() -> None:
    path = b"/srv/\xff\xfe".decode("utf-8", "surrogateescape")
    assert fields.absolute_path(path, "path") == path


def test_a_path_inside_a_source_loses_its_slashes_and_never_climbs() -> None:
    assert fields.relative_path("/etc/hosts/", "path") == "etc/hosts"
    with pytest.raises(FieldError):
        fields.relative_path("a/../../b", "path")


@pytest.mark.parametrize(
    "rule", ["- *.tmp", "+ /keep/***", "exclude /cache", "P .keep", "!", "-! */", "hide,s x", "H_x"]
)
def test_filter_rules_are_accepted(rule: str) -> None:
    assert fields.filter_rule(rule, "filter") == rule


@pytest.mark.parametrize(
    "rule",
    [
        ". /etc/shadow",
        ": .rules",
        "merge /etc/shadow",
        "dir-merge,n- .x",
        "merge,- /etc/passwd",
        "-C",
        "-",
        "",
        "x y",
        "- a\n+ b",
        "--delete",
        "- a\x00b",
        "hidex",
        ".,- /etc/shadow",
    ],
)
def test_filter_rules_that_read_files_or_are_no_rules_are_refused(rule: str) -> None:
    with pytest.raises(FieldError):
        fields.filter_rule(rule, "filter")


def test_a_merge_of_a_plain_name_is_a_filter_set_of_the_api() -> None:
    assert fields.filter_set_name("merge standard") == "standard"
    assert fields.filter_set_name(". standard") == "standard"
    assert fields.filter_set_name("merge /etc/shadow") is None
    assert fields.filter_rule_or_set("merge standard", "filter") == "merge standard"
    with pytest.raises(FieldError):
        fields.filter_rule_or_set("merge /etc/shadow", "filter")


@pytest.mark.parametrize("value", ["", "100", "2.5m", "1MiB", "10K", 500])
def test_bandwidths_are_accepted(value: object) -> None:
    assert fields.bandwidth(value, "bwlimit") == str(value)


@pytest.mark.parametrize("value", ["-1", "1 m", "fast", "1x", "1m --delete", True, 1.5])
def test_other_bandwidths_are_refused(value: object) -> None:
    with pytest.raises(FieldError):
        fields.bandwidth(value, "bwlimit")


def test_attic_is_the_old_name_of_borg() -> None:
    assert fields.snapshot_mode("attic", "snapshot_mode") == "borg"


@pytest.mark.parametrize("value", [True, -1, 2**60, 1.0, "1", None])
def test_whole_numbers_are_bounded_and_never_booleans(value: object) -> None:
    with pytest.raises(FieldError):
        fields.integer(value, "slots", 0, 100)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -1.0, True, "1"])
def test_numbers_are_finite_and_bounded(value: object) -> None:
    with pytest.raises(FieldError):
        fields.number(value, "time_begin")


def test_a_secret_never_stands_in_the_message_about_it() -> None:
    with pytest.raises(FieldError) as caught:
        fields.secret("hunter2 hunter2", "machine.secret")
    assert "hunter2" not in str(caught.value)


def test_a_uuid_comes_back_in_lower_case() -> None:
    value = "6BA7B810-9DAD-41D1-80B4-00C04FD430C8"
    assert fields.uuid(value, "uuid") == value.lower()


@pytest.mark.parametrize("value", ["6ba7b8109dad41d180b400c04fd430c8", "{x}", "urn:uuid:x", "", 5])
def test_other_forms_of_a_uuid_are_refused(value: object) -> None:
    with pytest.raises(FieldError):
        fields.uuid(value, "uuid")


def test_a_list_error_names_the_item() -> None:
    with pytest.raises(FieldError, match=r"exclude\[1\]"):
        fields.items(["*.tmp", 7], "exclude", fields.exclude_rule)


@pytest.mark.parametrize("value", ["127.0.0.1:9520", "[::1]:9520", "0.0.0.0:1"])
def test_an_address_to_listen_on_is_accepted(value: str) -> None:
    assert fields.listen_address(value, "metrics_listen") == value


@pytest.mark.parametrize(
    "value",
    [
        "", "9520", ":9520", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536",
        "localhost:9520", "::1:9520", "[127.0.0.1]:9520", "[fe80::1%eth0]:9520",
        "127.0.0.1:95 20", "127.0.0.1:9520\n[Service]", "127.0.0.1:٩", 9520, None,
    ],
)  # fmt: skip
def test_what_is_no_address_to_listen_on_is_refused(value: object) -> None:
    with pytest.raises(FieldError, match="metrics_listen: must be an address and a port"):
        fields.listen_address(value, "metrics_listen")

"""The pull's command as text, and what rsync's exit codes are taken for."""

from __future__ import annotations

from pathlib import Path

import pytest

from turku_core.storage.mirror import (
    Daemon,
    Outcome,
    Output,
    PullOptions,
    Target,
    classify,
    make_inclusions,
    make_rsync_command,
    make_rules,
    make_touch_up_command,
)

DAEMON = Daemon(port=50123, module="docs", username="user", password="the session's password")


def test_the_whole_command() -> None:
    options = PullOptions(exclude=("*.tmp",), bwlimit="2.5m")
    target = Target(Path("/v/mirror"), (Path("/v/snapshots/a"), Path("/v/b")), checksum=True)
    assert make_rsync_command(DAEMON, target, options) == [
        "rsync",
        "--archive",
        "--acls",
        "--xattrs",
        "--sparse",
        "--numeric-ids",
        "--modify-window=-1",
        "--fake-super",
        "--no-human-readable",
        "--timeout=600",
        "--contimeout=30",
        "--sockopts=TCP_NODELAY",
        "--hard-links",
        "--bwlimit=2.5m",
        "--delete",
        "--delete-excluded",
        "--partial",
        "--info=stats2,progress2",
        "--checksum",
        "--filter=merge -",
        "--link-dest=/v/snapshots/a",
        "--link-dest=/v/b",
        "--",
        "rsync://user@127.0.0.1:50123/docs/",
        "/v/mirror/",
    ]


def test_what_is_pulled_again_is_included_and_nothing_is_deleted() -> None:
    command = make_touch_up_command(DAEMON, Target(Path("/v")), PullOptions(bwlimit="1m"))
    assert {"--filter=merge -", "--from0", "--fake-super", "--bwlimit=1m"} <= set(command)
    assert not any(each.startswith("--delete") for each in command)
    # Which a machine's daemon refuses.
    assert not any(each.startswith("--files-from") for each in command)


def test_inclusions_are_of_the_names_and_of_the_folders_above_them() -> None:
    names = [b"./", b"a/b/c", b"a/b/d/", b"#1\n", b"w*\\[x", b"back\\slash", b"caf\xe9"]
    assert make_inclusions(names).split(b"\0") == [
        b"+ /.", b"+ /a/", b"+ /a/b/", b"+ /a/b/c", b"+ /a/b/d", b"+ /#1\n", b"+ /w\\*\\\\\\[x",
        b"+ /back\\slash", b"+ /caf\xe9", b"- *", b"",
    ]  # fmt: skip


def test_items_are_read_by_their_mark_in_whatever_pieces_they_come() -> None:
    lines = [
        b"mark .f........x changed\n",
        b"mark cf........x in a former tree\n",
        b"mark cd+++++++++ folder/\n",
        b"mark >f+++++++++ new\n",
        b"mark >f..t.....x written anew\n",
        b"mark .f...p..... mode only\n",
        b"mark cL+++++++++ link -> target\n",
        b"mark hf          a\\#012line => b => c\n",
        b"\r      1,234  50%  1.00MB/s mark .d........x ./\n",
        b"other .f........x said by a machine\n",
    ]
    for size in (1, 7, 10_000):
        output = Output(None, "mark")
        text = b"".join(lines)
        for start in range(0, len(text), size):
            output.feed(text[start : start + size])
        assert output.changed == [b"changed", b"in a former tree", b"./"]
        assert output.permitted == [b"mode only"]
        assert output.folders == [b"folder/"]
        assert output.links == {b"a\nline => b => c"}


def test_the_shortest_command_has_nothing_that_was_not_asked_for() -> None:
    command = make_rsync_command(
        DAEMON, Target(Path("/v")), PullOptions(preserve_hard_links=False), progress=False
    )
    assert not {"--hard-links", "--checksum", "--filter=merge -"} & set(command)
    assert "--info=stats2" in command


def test_prior_art_08_the_password_is_in_no_command_and_no_text() -> None:
    command = make_rsync_command(DAEMON, Target(Path("/v")), PullOptions())
    assert not any(DAEMON.password in argument for argument in command)
    assert DAEMON.password not in repr(DAEMON)


def test_rules_are_one_a_line_filters_first_in_raw_bytes() -> None:
    options = PullOptions(filter=("+ /keep", "- *.o"), exclude=("*.tmp", "caf\udce9"))
    assert make_rules(options) == b"+ /keep\n- *.o\n- *.tmp\n- caf\xe9\n"


@pytest.mark.parametrize(
    ("code", "stderr", "outcome", "words"),
    [
        (0, [], Outcome.RECEIVED, ""),
        (
            23,
            ['rsync: [sender] send_files failed to open "/x": Permission denied (13)'],
            Outcome.PARTIAL,
            "Permission denied",
        ),
        (24, ['file has vanished: "/x"'], Outcome.PARTIAL, "vanished"),
        (
            23,
            ['rsync: [receiver] mkstemp "/v/.x" failed: No space left on device (28)'],
            Outcome.FAILED,
            "volume is full",
        ),
        (
            11,
            ['rsync: [receiver] write failed on "/v/x": No space left on device (28)'],
            Outcome.FAILED,
            "volume is full",
        ),
        (
            11,
            ['rsync: [receiver] write failed on "/v/x": Disk quota exceeded (122)'],
            Outcome.FAILED,
            "volume is full",
        ),
        (
            23,
            [
                (
                    'rsync: [receiver] rsync_xal_set: lsetxattr("/v/x","user.big") failed: '
                    "No space left on device (28)"
                )
            ],
            Outcome.PARTIAL,
            "user.big",
        ),
        (
            23,
            [
                (
                    'rsync: [receiver] failed to write xattr user.rsync.%stat for "/v/x": '
                    "Operation not supported (95)"
                )
            ],
            Outcome.FAILED,
            "extended attributes",
        ),
        (10, ["rsync: failed to connect: Connection refused (111)"], Outcome.LATER, "refused"),
        (12, ["rsync: connection unexpectedly closed"], Outcome.LATER, "broke"),
        (30, ["rsync error: timeout in data send/receive (code 30)"], Outcome.LATER, "too long"),
        (35, [], Outcome.LATER, "in time"),
        (5, ["rsync: did not see server greeting"], Outcome.LATER, "before the machine's"),
        (5, ["@ERROR: auth failed on module docs"], Outcome.FAILED, "password"),
        (5, ["@ERROR: chdir failed"], Outcome.FAILED, "path isn't there"),
        (5, ["@ERROR: Unknown module 'docs'"], Outcome.FAILED, "doesn't offer"),
        (-9, [], Outcome.LATER, "signal 9"),
        (99, [], Outcome.FAILED, "code 99"),
    ],
)
def test_what_an_exit_code_is_taken_for(
    code: int, stderr: list[str], outcome: Outcome, words: str
) -> None:
    found, message = classify(code, stderr)
    assert found is outcome
    assert words in message


def test_a_full_disk_is_that_of_whoever_writes() -> None:
    stderr = ["rsync: [receiver] write failed on 'x': No space left on device (28)"]
    assert "The volume is full" in classify(11, stderr)[1]
    assert "disk that is restored to is full" in classify(11, stderr, in_a_restore=True)[1]
    assert "storage unit" not in classify(11, [], in_a_restore=True)[1]


def test_messages_are_printable_and_of_bearable_length() -> None:
    lines = [f"rsync: [sender] bad \x1b[31m name \udcff {number}" for number in range(1000)]
    _, message = classify(23, lines)
    assert "\x1b" not in message
    assert message.encode()
    assert "and 980 more" in message


def test_progress_and_counts_are_read_as_they_come() -> None:
    told: list[tuple[int, float | None]] = []
    output = Output(lambda count, percent: told.append((count, percent)))
    output.feed(b"\r     1048581  99% 1000.00MB/s    0:00:00 (xfr#3, to-chk=0/8)")
    output.feed(
        b"\nNumber of files: 12,345 (reg: 12,000, dir: 345)\nTotal file size: 1.234.567 bytes"
    )
    output.feed(
        b"\nNumber of regular files transferred: 7\nTotal transferred file size: 99 bytes\n"
    )
    counted = output.statistics()
    assert told == [(1048581, 99.0)]
    assert counted.files_total == 12345
    assert counted.bytes_total == 1234567
    assert counted.files_transferred == 7
    assert counted.bytes_transferred == 99

"""The commands of borg and of restores, as text."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from turku_core.storage.mirror import Daemon
from turku_core.storage.records import Record
from turku_core.storage.restore import Extent, Manner, make_local_command, make_push_command
from turku_core.storage.snapshots.borg import (
    make_check_command,
    make_create_command,
    make_environment,
    make_extract_command,
)

REPOSITORY = Path("/v/machines/uuid/.borg")
TAKEN_AT = datetime(2026, 1, 5, 4, 0, tzinfo=timezone(timedelta(hours=1)))
RECORD = Record(
    "uuid",
    "docs[1]",
    "20260105T030000Z",
    TAKEN_AT,
    TAKEN_AT,
    "borg",
    archive="docs[1]-20260105T030000Z",
)


def test_the_whole_command_that_makes_an_archive() -> None:
    assert make_create_command(REPOSITORY, RECORD) == [
        "borg",
        "create",
        "--json",
        "--lock-wait=21600",
        "--compression=lz4",
        "--files-cache=mtime,size,inode",
        "--noctime",
        "--noflags",
        "--noacls",
        "--sparse",
        "--timestamp=2026-01-05T03:00:00",
        "/v/machines/uuid/.borg::docs[1]-20260105T030000Z",
        "mirror",
    ]


def test_an_extract_takes_paths_literally_and_their_folders_without_content() -> None:
    command = make_extract_command(REPOSITORY, RECORD, ["a/b/*.txt", "a/c", "sh:x"])
    assert command[command.index("/v/machines/uuid/.borg::docs[1]-20260105T030000Z") + 1 :] == [
        "pf:mirror",
        "pf:mirror/a",
        "pf:mirror/a/b",
        "pp:mirror/a/b/*.txt",
        "pp:mirror/a/c",
        "pp:mirror/sh:x",
    ]


def test_a_check_is_of_one_archive_alone() -> None:
    command = make_check_command(REPOSITORY, RECORD)
    assert "--archives-only" in command
    assert "--glob-archives=docs[[]1]-20260105T030000Z" in command


def test_borg_asks_nothing_and_keeps_its_files_with_the_storage_unit() -> None:
    values = make_environment(Path("/state/borg"), "docs")
    assert values["BORG_BASE_DIR"] == "/state/borg"
    assert values["BORG_FILES_CACHE_SUFFIX"] == "docs"
    assert values["BORG_RELOCATED_REPO_ACCESS_IS_OK"] == "yes"
    assert values["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] == "yes"


def test_prior_art_33_a_push_never_skips_what_is_newer() -> None:
    daemon = Daemon(50123, "turku-restore", "user", "secret-of-the-session")
    command = make_push_command(Path("/v/tree"), daemon, Manner(checksum=True), Extent.CHOSEN)
    assert command == [
        "rsync",
        "--archive",
        "--hard-links",
        "--acls",
        "--xattrs",
        "--sparse",
        "--numeric-ids",
        "--modify-window=-1",
        "--no-human-readable",
        "--info=stats2",
        "--checksum",
        "--recursive",
        "--no-inc-recursive",
        "--files-from=-",
        "--from0",
        "--fake-super",
        "--timeout=600",
        "--contimeout=30",
        "--sockopts=TCP_NODELAY",
        "--",
        "/v/tree/",
        "rsync://user@127.0.0.1:50123/turku-restore/",
    ]
    assert not {"--update", "-u", "--ignore-existing", "--delete"} & set(command)


def test_a_local_restore_reads_fake_metadata_and_writes_real() -> None:
    command = make_local_command(Path("/v/tree"), Path("/target"), Manner(), Extent.ALL)
    assert command[command.index("--fake-super") :] == [
        "--fake-super",
        "--whole-file",
        "--rsh=sh -c 'shift; exec \"$@\"' sh",
        "--protect-args",
        "--",
        "/v/tree/",
        "localhost:/target/",
    ]


def test_no_local_copy_has_options_for_one_half_which_rsync_3_2_7_gets_wrong() -> None:
    command = make_local_command(Path("/v/tree"), Path("/target"), Manner(), Extent.CHOSEN)
    assert not any(word.startswith(("--remote-option", "-M")) for word in command)

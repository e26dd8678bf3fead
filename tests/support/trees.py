"""Odd trees: everything a file system can hold that a backup may lose, and a way to compare it."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_OLD = 946_684_800_123_456_789
"""A time with nanoseconds: 2000-01-01 and a bit."""


@dataclass(frozen=True)
class Entry:
    """All that is compared of one file; sizes and blocks of folders differ by file system."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int | None = None
    content: str | None = None
    link_target: bytes | None = None
    device: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    hard_links: tuple[bytes, ...] = ()
    sparse: bool = False


def make_odd_tree(path: Path, as_root: bool) -> None:
    """Make a tree of odd files in `path`, which is made.

    As root there are foreign owners, devices and `trusted` and `security` attributes as well;
    else there is only what any user may make (and files without any permission, which only root
    or rsync's fake-super restores to itself).
    """
    path.mkdir(parents=True)
    root = os.fsencode(path)
    _make_plain_files(root)
    _make_links(root)
    _make_specials(path)
    _make_attributes(root)
    if as_root:
        _make_what_root_may(root)
    _set_times(root)
    if as_root:
        os.chmod(root + b"/no-permissions/inside", 0)
        os.chmod(root + b"/no-permissions", 0)
        os.utime(root + b"/no-permissions", ns=(_OLD, _OLD + 5_000_000_111))


def _write(path: bytes, content: bytes, mode: int = 0o644) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


def _make_plain_files(root: bytes) -> None:
    _write(root + b"/plain", b"plain text\n")
    _write(root + b"/empty", b"")
    _write(root + b"/private", b"for one\n", 0o600)
    _write(root + b"/setuid", b"#!/bin/sh\n", 0o4755)
    _write(root + b"/setgid-sticky", b"x", 0o3711)
    _write(root + b"/large", os.urandom(65536) * 24)
    _write(root + b"/latin-1 \xe9\xff name", b"not UTF-8\n")
    _write(root + "/schöner ☃ name".encode(), b"UTF-8\n")
    _write(root + b"/new\nline and *?[wild]", b"shell\n")
    _write(root + b"/-rf", b"option\n")
    _write(root + b"/ space at ends ", b"space\n")
    os.makedirs(root + b"/folder/deeper/deepest")
    _write(root + b"/folder/deeper/deepest/file", b"deep\n")
    os.mkdir(root + b"/empty folder", 0o755)
    os.mkdir(root + b"/sticky", 0o755)
    os.chmod(root + b"/sticky", 0o1777)
    os.mkdir(root + b"/no-permissions")
    _write(root + b"/no-permissions/inside", b"root sees it\n")
    with open(root + b"/sparse", "wb") as file:
        file.write(b"head")
        file.seek(8 * 1024 * 1024)
        file.write(b"tail")


def _make_links(root: bytes) -> None:
    os.symlink(b"plain", root + b"/link")
    os.symlink(b"/etc/passwd", root + b"/absolute link")
    os.symlink(b"../../../nowhere \xff", root + b"/dangling link")
    os.symlink(b"folder", root + b"/link to folder")
    os.link(root + b"/plain", root + b"/folder/hard link to plain")
    os.link(root + b"/large", root + b"/hard link to large")
    os.link(root + b"/large", root + b"/folder/deeper/second hard link to large")


def _make_specials(path: Path) -> None:
    os.mkfifo(path / "fifo", 0o640)
    here = os.getcwd()
    os.chdir(path)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(here)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return a POSIX ACL as the kernel keeps it (linux/posix_acl_xattr.h): tag, rights, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _make_attributes(root: bytes) -> None:
    nobody = 0xFFFFFFFF
    user_obj, user, group_obj, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    _write(root + b"/with attributes", b"attributes\n")
    os.setxattr(root + b"/with attributes", "user.comment", b"a \0 binary \xff value")
    os.setxattr(root + b"/with attributes", "user.empty", b"")
    os.setxattr(root + b"/folder", "user.of.folder", b"yes")
    _write(root + b"/with acl", b"acl\n", 0o640)
    entries = [
        (user_obj, 6, nobody),
        (user, 6, 12345),
        (group_obj, 4, nobody),
        (mask, 6, nobody),
        (other, 0, nobody),
    ]
    os.setxattr(root + b"/with acl", "system.posix_acl_access", acl(*entries))
    os.mkdir(root + b"/sticky with acl")
    group = [(user_obj, 7, nobody), (user, 6, 12345), (group_obj, 7, nobody), (mask, 7, nobody)]
    group.append((other, 0, nobody))
    os.setxattr(root + b"/sticky with acl", "system.posix_acl_access", acl(*group))
    os.chmod(root + b"/sticky with acl", 0o1770)
    os.mkdir(root + b"/default acl", 0o750)
    os.setxattr(root + b"/default acl", "system.posix_acl_default", acl(*entries))


def _make_what_root_may(root: bytes) -> None:
    _write(root + b"/owned", b"somebody's\n")
    os.chown(root + b"/owned", 1234, 5678)
    _write(root + b"/owned setuid", b"#!/bin/sh\n")
    os.chown(root + b"/owned setuid", 4321, 8765)
    os.chmod(root + b"/owned setuid", 0o6755)
    os.chown(root + b"/link", 1234, 5678, follow_symlinks=False)
    os.chown(root + b"/folder/deeper", 99999, 99998)
    os.mknod(root + b"/null device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root + b"/block device", 0o660 | stat.S_IFBLK, os.makedev(7, 200))
    os.setxattr(root + b"/plain", "trusted.turku", b"only root sees this")
    # cap_net_bind_service, effective (linux/capability.h, vfs_cap_data revision 2)
    capability = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
    os.setxattr(root + b"/private", "security.capability", capability)


def _set_times(root: bytes) -> None:
    paths = [root]
    for folder, folders, files in os.walk(root):
        paths += [os.path.join(folder, name) for name in folders + files]
    for number, path in enumerate(sorted(paths, reverse=True)):
        moment = _OLD + number * 1_000_000_007
        os.utime(path, ns=(moment, moment), follow_symlinks=False)


def describe_tree(path: Path, *, attributes: bool = True) -> dict[bytes, Entry]:
    """Describe everything below `path` (`.` is itself), by relative path.

    Two trees are the same when their descriptions are equal. `attributes` False leaves out
    extended attributes and ACLs.
    """
    root = os.fsencode(path)
    links: dict[tuple[int, int], list[bytes]] = defaultdict(list)
    found: dict[bytes, os.stat_result] = {b".": os.lstat(root)}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            full = os.path.join(folder, name)
            found[os.path.relpath(full, root)] = os.lstat(full)
    for relative, status in found.items():
        if not stat.S_ISDIR(status.st_mode):
            links[status.st_dev, status.st_ino].append(relative)
    return {
        relative: _describe(
            os.path.join(root, relative),
            status,
            tuple(sorted(links[status.st_dev, status.st_ino])),
            attributes,
        )
        for relative, status in sorted(found.items())
    }


def _describe(
    path: bytes, status: os.stat_result, hard_links: tuple[bytes, ...], attributes: bool
) -> Entry:
    mode = status.st_mode
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    regular = stat.S_ISREG(mode)
    return Entry(
        kind=kinds[stat.S_IFMT(mode)],
        mode=stat.S_IMODE(mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if regular else None,
        content=_digest(path) if regular else None,
        link_target=os.readlink(path) if stat.S_ISLNK(mode) else None,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev))
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        else None,
        xattrs=_attributes(path) if attributes else (),
        hard_links=hard_links if len(hard_links) > 1 else (),
        sparse=regular and status.st_size > 1024 * 1024 and status.st_blocks * 512 < 1024 * 1024,
    )


def _attributes(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def _digest(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1024 * 1024):
            digest.update(block)
    return digest.hexdigest()


def differences(expected: Mapping[bytes, Entry], found: Mapping[bytes, Entry]) -> list[str]:
    """Return a line for every path that isn't the same in both descriptions."""
    lines = [f"missing: {path!r}" for path in expected.keys() - found.keys()]
    lines += [f"unexpected: {path!r}" for path in found.keys() - expected.keys()]
    for path in expected.keys() & found.keys():
        if expected[path] != found[path]:
            lines.append(f"differs: {path!r}: {expected[path]} became {found[path]}")
    return sorted(lines)


def make_many_files(path: Path, count: int, *, large_mib: int = 0) -> None:
    """Make a tree of `count` small files of varied sizes, and one file of `large_mib` MiB."""
    path.mkdir(parents=True)
    for number in range(count):
        folder = path / f"{number % 100:02}"
        if number < 100:
            folder.mkdir()
        (folder / f"file-{number}").write_bytes(b"%d\n" % number * (number % 700))
    if large_mib:
        subprocess.run(
            ["head", "-c", str(large_mib * 1024 * 1024), "/dev/urandom"],
            stdout=(path / "large").open("wb"),
            check=True,
        )

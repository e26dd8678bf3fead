"""A tree on the disk that changes from generation to generation, and the memory of what it was.

Every kind of file comes, changes, moves and goes by chance, with names and times that programs like
ours, rsync and borg trip over. What `describe_tree` says of each generation is its memory.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.trees import Entry, acl, describe_tree, differences

ENTRIES_MIN, ENTRIES_MAX = 40, 80
SPARSE_BYTES = 2 * 1024 * 1024

BUSY = b"busy"
"""The folder of what somebody writes to while it is backed up."""

_NAMES = (
    b"plain",
    b"a => b",
    b"-rf",
    b"--delete",
    b"- *",
    b"+ *",
    b"!",
    b"# no comment",
    b"; neither",
    b"*",
    b"**",
    b"wh?t",
    b"[a-z]",
    b" space ",
    b"new\nline",
    b"return\r",
    b"\t",
    b"\x1b[31mred",
    b"\\#012",
    b"\\",
    b"\"quoted\" 'twice'",
    b"$HOME `id`",
    b"%n%L",
    b"~",
    b"...",
    b".hidden",
    b"\xe9\xff latin",
    "schöner ☃".encode(),
    "scho\u0308ner".encode(),
    b"l" * 251,
    "☃".encode() * 83,
    # As ours and other programs' own files are called.
    b"mirror",
    b"snapshots",
    b"source.json",
    b".source.json.0123456789abcdef.tmp",
    b".restore-x",
    b"_delete-x",
    b".removing-x",
    b".rsync-partial",
    b".plain.a1B2c3",
    b"rsync.%stat",
    b".borg",
    b"20260105T030000Z.json",
)

_SIZES = (0, 1, 2, 511, 699, 700, 701, 4095, 4096, 4097, 16384, 30_000)

_BILLION = 1_000_000_000
_TIMES = (
    0,
    1,
    -1,
    -_BILLION,
    -_BILLION * _BILLION - 1,  # 1938
    (2**31 - 1) * _BILLION + 999_999_999,
    2**31 * _BILLION,
    4_102_444_800 * _BILLION + 7,  # 2100
    1_700_000_000 * _BILLION,
    1_700_000_000 * _BILLION + 1,
)
"""Times of modification, in nanoseconds; the last ones often differ by no more than one."""

_MODES = (0o644, 0o600, 0o400, 0, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777, 0o664)
_OWNERS = (0, 1, 1000, 65534, 99_999, 2**31, 2**32 - 2)
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_ATTRIBUTES = ("user.a", "user.b c", "user.schön", "trusted.t", "user." + "n" * 90)


@dataclass(frozen=True)
class Memory:
    """What a generation was: its tree, and each state that a busy file had while it was read."""

    tree: Mapping[bytes, Entry]
    busy: Mapping[bytes, Callable[[bytes | None], bool]]

    def wrong_in(self, found: Path) -> list[str]:
        """Return what of a restored tree isn't as it was, a line each."""
        tree = describe_tree(found)
        if self.busy:
            tree = without_busy(tree)
        lines = differences(self.tree, tree)
        for name, could_be in self.busy.items():
            path = os.path.join(os.fsencode(found), BUSY, name)
            content = None
            if os.path.lexists(path):
                with open(path, "rb") as file:
                    content = file.read()
            if not could_be(content):
                lines.append(f"{name!r} was never like this: {content!r:.100}")
        return lines


def without_busy(tree: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    inside = BUSY + b"/"
    return {path: entry for path, entry in tree.items() if path != BUSY and inside not in path}


class Tree:
    """A tree that changes; what was done to it last is in `done`.

    Args:
        root: Its folder, which is made.
        dice: Chance. With the same dice the same tree comes of it.
    """

    def __init__(self, root: Path, dice: random.Random) -> None:
        self.root = os.fsencode(root)
        self.done: list[str] = []
        self._dice = dice
        root.mkdir()
        os.mkdir(self._path(BUSY))
        self._operations: list[tuple[int, Callable[[], str | None]]] = [
            (10, self._make_file),
            (3, self._make_folder),
            (3, self._make_symlink),
            (2, self._make_special),
            (1, self._make_sparse),
            (2, self._make_deep),
            (6, self._overwrite),
            (4, self._append),
            (3, self._truncate),
            (4, self._replace),
            (8, self._rename),
            (3, self._swap),
            (6, self._become),
            (6, self._link),
            (4, self._unlink_a_link),
            (4, self._separate),
            (5, self._chmod),
            (5, self._chown),
            (5, self._set_time),
            (5, self._change_attribute),
            (4, self._change_acl),
            (7, self._remove),
        ]

    def change(self, count: int) -> dict[bytes, Entry]:
        """Do so many things to the tree, and describe it then."""
        self.done = []
        while len(self.done) < count:
            entries = len(self._entries())
            if entries < ENTRIES_MIN:
                operation: Callable[[], str | None] = self._make_file
                if self._dice.random() < 0.4:
                    (operation,) = self._dice.choices([each[1] for each in self._operations[:6]])
            elif entries > ENTRIES_MAX:
                operation = self._remove
            else:
                weights, operations = zip(*self._operations, strict=True)
                (operation,) = self._dice.choices(operations, weights)
            said = operation()
            if said is not None:
                self.done.append(f"{operation.__name__.strip('_')}: {said}")
        return describe_tree(Path(os.fsdecode(self.root)))

    def _path(self, relative: bytes) -> bytes:
        return os.path.join(self.root, relative)

    def _entries(self) -> dict[bytes, os.stat_result]:
        """Return all that is there but the top and what is busy, in an order that stays."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            for name in folders + files:
                full = os.path.join(folder, name)
                relative = os.path.relpath(full, self.root)
                if relative.split(b"/")[0] != BUSY:
                    found[relative] = os.lstat(full)
        return dict(sorted(found.items()))

    def _choose(self, *kinds: Callable[[int], bool]) -> bytes | None:
        """Return any entry, or one of certain kinds."""
        found = [
            path
            for path, status in self._entries().items()
            if not kinds or any(is_kind(status.st_mode) for is_kind in kinds)
        ]
        return self._dice.choice(found) if found else None

    def _new_name(self) -> bytes:
        """Return a path where nothing is yet."""
        folders = [path for path, each in self._entries().items() if stat.S_ISDIR(each.st_mode)]
        folders = [path for path in folders if path.count(b"/") < 12]
        folder = self._dice.choice([b"", *folders])
        while True:
            name = self._dice.choice(_NAMES)
            if self._dice.random() < 0.5:
                name = name[:240] + b" %d" % self._dice.randrange(100)
            path = os.path.join(folder, name)
            if len(path) < 2000 and not os.path.lexists(self._path(path)):
                return path

    def _content(self) -> bytes:
        size = self._dice.choice(_SIZES)
        kind = self._dice.random()
        if kind < 0.15:
            return bytes(size)
        if kind < 0.3:
            return (b"the same line\n" * (size // 14 + 1))[:size]
        return self._dice.randbytes(size)

    def _write(self, path: bytes, content: bytes) -> None:
        with open(self._path(path), "wb") as file:
            file.write(content)

    def _stamp(self, path: bytes) -> None:
        """Let a file that was written have a time that it did not have before."""
        before = os.lstat(self._path(path)).st_mtime_ns
        moment = before + 1
        if self._dice.random() < 0.5:
            moment = 1_750_000_000 * _BILLION + self._dice.randrange(10**17)
        os.utime(self._path(path), ns=(moment, moment), follow_symlinks=False)

    # What comes.

    def _make_file(self, path: bytes | None = None) -> str:
        path = path or self._new_name()
        content = self._content()
        self._write(path, content)
        os.chmod(self._path(path), self._dice.choice(_MODES))
        return f"{path!r}, {len(content)} bytes"

    def _make_folder(self, path: bytes | None = None) -> str:
        path = path or self._new_name()
        os.mkdir(self._path(path))
        os.chmod(self._path(path), self._dice.choice((0o755, 0o700, 0, 0o1777, 0o2775, 0o500)))
        return repr(path)

    def _make_symlink(self, path: bytes | None = None) -> str:
        path = path or self._new_name()
        target = self._dice.choice(
            [b"..", b"/etc/passwd", b"nowhere \xff", b"t" * 4000, *self._entries()]
        )
        os.symlink(target, self._path(path))
        return f"{path!r} -> {target[:50]!r}"

    def _make_special(self, path: bytes | None = None) -> str:
        path = path or self._new_name()
        kind = self._dice.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
        if kind == stat.S_IFSOCK:
            # The path of a socket must be short.
            place = os.open(self.root, os.O_PATH)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{place}/aside")
            os.close(place)
            os.rename(self._path(b"aside"), self._path(path))
        else:
            device = os.makedev(self._dice.randrange(255), self._dice.randrange(2**18))
            is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
            os.mknod(self._path(path), kind | 0o640, device if is_device else 0)
        return f"{path!r}, {stat.filemode(kind)[0]}"

    def _make_sparse(self) -> str | None:
        if any(each.st_size >= SPARSE_BYTES for each in self._entries().values()):
            return None
        path = self._new_name()
        with open(self._path(path), "wb") as file:
            file.write(self._dice.randbytes(100))
            file.truncate(SPARSE_BYTES)
        return repr(path)

    def _make_deep(self) -> str:
        path = self._new_name()
        deepest = os.path.join(path, *[b"d"] * self._dice.randrange(3, 9))
        os.makedirs(self._path(deepest))
        return repr(deepest)

    # What changes.

    def _overwrite(self) -> str | None:
        """Write other bytes, as many, to where they were."""
        path = self._choose(stat.S_ISREG)
        if path is None:
            return None
        size = os.lstat(self._path(path)).st_size
        with open(self._path(path), "r+b") as file:
            file.seek(self._dice.randrange(size + 1) // 2)
            file.write(self._dice.randbytes(min(300, (size + 1) // 2)))
        self._stamp(path)
        return repr(path)

    def _append(self) -> str | None:
        path = self._choose(stat.S_ISREG)
        if path is None:
            return None
        with open(self._path(path), "ab") as file:
            file.write(self._content())
        self._stamp(path)
        return repr(path)

    def _truncate(self) -> str | None:
        path = self._choose(stat.S_ISREG)
        if path is None:
            return None
        size = os.lstat(self._path(path)).st_size
        os.truncate(self._path(path), self._dice.randrange(size + 1))
        self._stamp(path)
        return repr(path)

    def _replace(self) -> str | None:
        """Put another file where one was, as editors do."""
        path = self._choose(stat.S_ISREG)
        if path is None:
            return None
        new = self._new_name()
        self._write(new, self._content())
        self._stamp(new)
        os.rename(self._path(new), self._path(path))
        return repr(path)

    def _rename(self) -> str | None:
        old = self._choose()
        if old is None:
            return None
        new = self._new_name()
        if new.startswith(old + b"/"):
            return None
        os.rename(self._path(old), self._path(new))
        return f"{old!r} -> {new!r}"

    def _swap(self) -> str | None:
        """Let two entries change places."""
        one, two = self._choose(), self._choose()
        if one is None or two is None or (one + b"/").startswith(two + b"/"):
            return None
        if (two + b"/").startswith(one + b"/"):
            return None
        aside = self._path(b"aside")
        os.rename(self._path(one), aside)
        os.rename(self._path(two), self._path(one))
        os.rename(aside, self._path(two))
        return f"{one!r} and {two!r}"

    def _become(self) -> str | None:
        """Let an entry be one of another kind, under its name."""
        path = self._choose()
        if path is None:
            return None
        makers = [self._make_file, self._make_folder, self._make_symlink, self._make_special]
        make = self._dice.choice(makers)
        self._delete(path)
        make(path)
        return f"{path!r}, {make.__name__}"

    def _link(self) -> str | None:
        path = self._choose(*(lambda mode, k=k: stat.S_IFMT(mode) == k for k in _LINKED))
        if path is None:
            return None
        new = self._new_name()
        os.link(self._path(path), self._path(new), follow_symlinks=False)
        return f"{new!r} = {path!r}"

    def _linked(self) -> bytes | None:
        found = [
            path
            for path, status in self._entries().items()
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        ]
        return self._dice.choice(found) if found else None

    def _unlink_a_link(self) -> str | None:
        path = self._linked()
        if path is None:
            return None
        os.unlink(self._path(path))
        return repr(path)

    def _separate(self) -> str | None:
        """Let a linked file be one of its own with the same content and time, as `cp -p` does."""
        path = self._linked()
        if path is None:
            return None
        status = os.lstat(self._path(path))
        if not stat.S_ISREG(status.st_mode) or status.st_size >= SPARSE_BYTES:
            return None
        aside = self._path(b"aside")
        shutil.copy2(self._path(path), aside)
        os.rename(aside, self._path(path))
        if self._dice.random() < 0.5:
            os.chmod(self._path(path), self._dice.choice(_MODES))
        return repr(path)

    def _chmod(self) -> str | None:
        path = self._choose(*(lambda mode, k=k: stat.S_IFMT(mode) == k for k in _WITH_MODE))
        if path is None:
            return None
        mode = self._dice.choice(_MODES)
        os.chmod(self._path(path), mode)
        return f"{path!r}, {mode:o}"

    def _chown(self) -> str | None:
        path = self._choose()
        if path is None:
            return None
        owner, group = self._dice.choice(_OWNERS), self._dice.choice(_OWNERS)
        os.chown(self._path(path), owner, group, follow_symlinks=False)
        return f"{path!r}, {owner}:{group}"

    def _set_time(self) -> str | None:
        path = self._choose()
        if path is None:
            return None
        moment = self._dice.choice(_TIMES)
        if moment == os.lstat(self._path(path)).st_mtime_ns:
            return None
        os.utime(self._path(path), ns=(moment, moment), follow_symlinks=False)
        return f"{path!r}, {moment}"

    def _change_attribute(self) -> str | None:
        path = self._choose(stat.S_ISREG, stat.S_ISDIR)
        if path is None:
            return None
        full = self._path(path)
        name = self._dice.choice(_ATTRIBUTES)
        if name in os.listxattr(full) and self._dice.random() < 0.5:
            os.removexattr(full, name)
            return f"{path!r}, without {name}"
        value = self._dice.randbytes(self._dice.choice([0, 1, 31, 32, 33, 200]))
        os.setxattr(full, name, value)
        return f"{path!r}, {name}, {len(value)} bytes"

    def _change_acl(self) -> str | None:
        path = self._choose(stat.S_ISREG, stat.S_ISDIR)
        if path is None:
            return None
        full = self._path(path)
        names = ["system.posix_acl_access"]
        if os.path.isdir(full):
            names.append("system.posix_acl_default")
        name = self._dice.choice(names)
        if name in os.listxattr(full) and self._dice.random() < 0.5:
            os.removexattr(full, name)
            return f"{path!r}, without {name}"
        rights = [self._dice.randrange(8) for _ in range(5)]
        who = sorted({self._dice.choice(_OWNERS) for _ in range(2)})
        entries = [
            (_USER_OBJ, rights[0], _NOBODY),
            (_GROUP_OBJ, self._dice.choice(rights[1:3]), _NOBODY),
        ]
        entries += [(_MASK, rights[2], _NOBODY), (_OTHER, rights[3], _NOBODY)]
        entries += [(self._dice.choice((_USER, _GROUP)), rights[4], each) for each in who]
        os.setxattr(full, name, acl(*sorted(entries)))
        return f"{path!r}, {name} {rights} {who}"

    # What goes.

    def _remove(self) -> str | None:
        path = self._choose()
        if path is None:
            return None
        self._delete(path)
        return repr(path)

    def _delete(self, path: bytes) -> None:
        full = self._path(path)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        else:
            os.unlink(full)


_LINKED = (stat.S_IFREG, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)
_WITH_MODE = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


class Writer:
    """Somebody who writes to some files again and again, until told to end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended = threading.Event()
        self._replaced: set[bytes | None] = {None}
        self._grown = b""
        self._marks: set[int] = set()

    def could_be(self) -> dict[bytes, Callable[[bytes | None], bool]]:
        """Return for each file which contents it may have been read with.

        One that is replaced has one of its states; one that grows, a beginning of all that was
        written; one that is written in place may be of several states, but of nothing else.
        """
        replaced, grown, marks = frozenset(self._replaced), self._grown, frozenset(self._marks)
        return {
            b"replaced": lambda content: content in replaced,
            b"comes and goes": lambda content: content in (None, b"", b"here"),
            b"grown": lambda content: content is None or grown.startswith(content),
            b"in place": lambda content: content is None or set(content) <= marks,
        }

    def run(self) -> None:
        """Write until the end, and leave everything with a time of its own."""
        number = 0
        while not self._ended.is_set() or number < 3:
            number += 1
            self._write(number)
            self._ended.wait(0.001)

    def _write(self, number: int) -> None:
        content = b"%d " % number * (500 + number % 7)
        self._replaced.add(content)
        new = self._folder / "new"
        new.write_bytes(content)
        new.rename(self._folder / "replaced")
        line = b"line %d\n" % number
        self._grown += line
        with (self._folder / "grown").open("ab") as file:
            file.write(line)
        self._marks.add(number % 256)
        with (self._folder / "in place").open("r+b" if number > 1 else "wb") as file:
            file.write(bytes([number % 256]) * 20_000)
        come = self._folder / "comes and goes"
        if number % 2:
            come.write_bytes(b"here")
        else:
            come.unlink()

    def end(self) -> None:
        """Let it come to its end."""
        self._ended.set()


@contextlib.contextmanager
def writing(root: Path) -> Iterator[Writer]:
    """Write to the busy files of a tree while the context lasts; what was there before goes."""
    folder = root / os.fsdecode(BUSY)
    for path in folder.iterdir():
        path.unlink()
    writer = Writer(folder)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield writer
    finally:
        writer.end()
        thread.join()
        for path in folder.iterdir():
            # A clock with slow ticks may have left it the time that it had when it was read.
            moment = time.time_ns()
            os.utime(path, ns=(moment, moment))

"""What the console scripts share: exit codes, common options, tables, sizes, times, progress."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, TextIO

from turku_core import __version__
from turku_core.errors import BAD_USAGE, DONE, FAILED, TurkuError

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_PROGRESS_SECONDS = 0.2


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every console script has."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_common_options(parser)
    return parser


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--root`` and ``--verbose``."""
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="use the configuration and state below DIR instead of / (for trying it out)",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say on standard error what is being done"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON, for a program to read")


def run(
    body: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> NoReturn:
    """Run the body of a console script, and end the process with the exit code it earned.

    A `TurkuError` becomes its sentence on standard error and its exit code; Ctrl-C ends with 130,
    as a shell shows it. A closed output (``| head``) ends quietly.
    """
    set_up_logging(arguments.verbose)
    program = os.path.basename(sys.argv[0])
    try:
        code = body(arguments)
        sys.stdout.flush()
    except TurkuError as error:
        print(f"{program}: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted.", file=sys.stderr)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # Python would complain once more when it flushes standard output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"{program}: {error.strerror or error}{where}.", file=sys.stderr)
        logging.getLogger(__name__).debug("the error in full", exc_info=True)
        code = FAILED
    sys.exit(DONE if code is None else code)


def run_and_leave(
    body: Callable[[argparse.Namespace], int | None], arguments: argparse.Namespace
) -> NoReturn:
    """Do as `run` does, for a script that runs so often that its end counts.

    Taking the interpreter apart, module by module, takes as long as a fifth of an idle check-in. So
    the process just ends: whatever has to be closed or removed was so by its owner before.
    """
    try:
        run(body, arguments)
    except SystemExit as end:
        logging.shutdown()
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else FAILED)


def set_up_logging(verbose: bool) -> None:
    """Send the log to standard error, one event a line: warnings, or everything when verbose."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # At this level it would print the URL of every call, and nothing that helps an operator.
    logging.getLogger("urllib3").setLevel(logging.INFO)


def set_log_level(level: str) -> None:
    """Log from the configured level on (see `fields.log_level`); --verbose is stronger."""
    root = logging.getLogger()
    if root.level != logging.DEBUG:
        root.setLevel(level.upper())


def usage_error(program: str, sentence: str) -> NoReturn:
    """Say what is wrong with the command line, and end with the exit code for it."""
    print(f"{program}: {sentence}", file=sys.stderr)
    sys.exit(BAD_USAGE)


def print_json(value: Any) -> None:
    """Print a value as JSON, in a form that a person can also read."""
    print(json.dumps(value, indent=2, sort_keys=True, default=_as_json))


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under headings; see `table`."""
    print(table(headings, rows))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows under headings, in columns as wide as their content; None is shown as a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(len(column) for column in columns)
        for columns in zip([heading.upper() for heading in headings], *cells, strict=True)
    ]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in ([heading.upper() for heading in headings], *cells)
    )


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    shown = str(value)
    # What a machine named must not drive the operator's terminal.
    return "".join(character if character.isprintable() else "?" for character in shown)


def human_size(count: float | None) -> str | None:
    """Return a number of bytes in binary units, such as ``1.5 GiB``; None stays None."""
    if count is None:
        return None
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def human_time(moment: datetime | None) -> str | None:
    """Return a time in the local time zone of the reader, to the second; None stays None."""
    return None if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def human_duration(duration: timedelta | None) -> str | None:
    """Return a duration in its two largest units, such as ``3 h 12 min``; None stays None."""
    if duration is None:
        return None
    seconds = duration.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


class Progress:
    """One line on a terminal that says how far something is; nothing when it isn't a terminal."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._shows = stream.isatty()
        self._last = 0.0
        self._width = 0

    def show(self, line: str) -> None:
        """Replace the line, at most five times a second."""
        now = time.monotonic()
        if not self._shows or now - self._last < _PROGRESS_SECONDS:
            return
        self._last = now
        self._write(line)

    def clear(self) -> None:
        """Take the line away, so that ordinary output can follow."""
        if self._shows and self._width:
            self._write("")

    def _write(self, line: str) -> None:
        columns = os.get_terminal_size(self._stream.fileno()).columns
        line = _cell(line)[: columns - 1] if line else ""
        self._stream.write("\r" + line.ljust(self._width) + ("\r" if not line else ""))
        self._stream.flush()
        self._width = len(line)

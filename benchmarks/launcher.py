"""Run a program and print, as one line, what it took: seconds, CPU seconds, peak KiB, exit code.

It imports next to nothing, since a child's peak memory begins with its parent's (getrusage(2)
counts what was there before exec).
"""

import os
import sys
import time


def main() -> None:
    """Run the program that the arguments name, its output to standard error or nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    began = time.monotonic()
    pid = os.posix_spawn(
        sys.argv[1],
        sys.argv[1:],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, nowhere, 0), (os.POSIX_SPAWN_DUP2, nowhere, 1)],
    )
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    cpu = usage.ru_utime + usage.ru_stime
    print(seconds, cpu, usage.ru_maxrss, os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()

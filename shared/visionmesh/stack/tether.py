"""Ties a command to the life of its starter, then becomes it: `tether.py SIGNAL STARTER_PID COMMAND…`.

Linux sends SIGNAL to the command when the starting thread ends, however it ends, so that a test run killed
with -9 leaves no broker behind. Run as a file by a bare interpreter (`-I -S`), hence without packages.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    signal_number, starter, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
        # The starter may have ended before the request above; nobody would tell us any more.
        if os.getppid() != int(starter):
            sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

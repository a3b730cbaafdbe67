"""What a person would see: a command run in a terminal of its own, and the lines that stand there in the end."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Sequence
from contextlib import suppress

WIDTH = 200


def in_terminal(command: Sequence[object], env: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs a command whose output is a terminal; its exit code and everything it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    process = subprocess.Popen([*map(str, command)], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    # The terminal's other end is gone when the last process that has it is.
    with suppress(OSError):
        while read := os.read(ours, 1 << 16):
            written += read
    os.close(ours)
    return process.wait(), written.decode()


def screen(written: str) -> list[str]:
    """The lines that are left when carriage returns and what was written over others is taken into account."""
    lines, column = [""], 0
    for character in written:
        if character == "\n":
            lines.append("")
            column = 0
        elif character == "\r":
            column = 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]

"""A command of tinylm in a pseudo-terminal, whose screen is that of an emulator (pyte)."""

import os
import re
import struct
import sys
from pathlib import Path

import pyte

from tests import processes

READY, TYPED = "\x1b[?2004h", "\x1b[?2004l"  # prompt_toolkit turns bracketed paste on for a prompt, and off after it
SECONDS = 60  # to wait for anything


class Terminal:
    """A process at a terminal of its own.

    Args:
        words: the command line after `tinylm`
        folder: the working folder
        columns: width of the window
        environment: additional variables

    Attributes:
        screen: what is shown, with the lines that have left the window
        echo: what the line editor wrote for the last prompt
    """

    def __init__(self, *words: str, folder: Path, columns: int = 80, **environment: str) -> None:
        import fcntl
        import termios

        from pexpect.fdpexpect import fdspawn

        self.screen = pyte.HistoryScreen(columns, 24, history=2000)
        self._stream, self.echo = pyte.Stream(self.screen), ""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        environment = {"TERM": "xterm-256color"} | environment
        self.process = processes.start(_run, os.ttyname(slave), words, folder, **environment)
        self._slave = slave  # kept open: the process opens it by its name
        self._keys = fdspawn(master, timeout=SECONDS, encoding="utf-8", codec_errors="replace")

    def until(self, sign: str = READY) -> str:
        """The output up to a sign; by default that after what was typed, up to the next prompt."""
        self._keys.expect_exact(sign)
        self._stream.feed(self._keys.before + sign)
        self.echo, _, printed = self._keys.before.rpartition(TYPED)
        return re.sub(r"\x1b\[\??[\d;]*[A-Za-z]|\r", "", printed.replace("\r\n", "\n"))

    def type(self, keys: str) -> None:
        """Presses keys."""
        self._keys.send(keys)

    def answer(self, line: str) -> str:
        """The output after a line and Enter, up to the next prompt."""
        self.type(line + "\r")
        return self.until()

    def lines(self) -> list[str]:
        """The lines of the screen, those that have left the window first, without the spaces at their ends."""
        above = ["".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top]
        return [line.rstrip() for line in [*above, *self.screen.display]]

    def exit_code(self) -> int | None:
        """The exit code of the process, once it has ended."""
        self.process.join(SECONDS)
        return self.process.exitcode

    def close(self) -> None:
        """Ends the process, and the terminal."""
        self.process.kill()
        self.process.join()
        self._keys.close()
        os.close(self._slave)


def _run(device: str, words: list[str], folder: Path) -> None:
    from tinylm.commands import main

    os.chdir(folder)
    os.login_tty(os.open(device, os.O_RDWR))
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    code = main(list(words))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)

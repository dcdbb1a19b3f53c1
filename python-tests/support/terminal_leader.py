"""The leader of a terminal's session, as a shell is: starts one program on it.

A program that led the session itself would hang the terminal up with its end,
and the kernel would set the terminal's modes back: nobody could tell whether
the program did. Run as `terminal_leader.py TERMINAL_FD STATUS_FD PROGRAM…`;
writes a line `pid N`, a line for each change (`stopped N`, `continued 0`,
`exit N`), and stays until its stdin is closed.
"""

import fcntl
import os
import signal
import sys
import termios


def main() -> None:
    """Start the program, tell of its changes, wait for the end of stdin."""
    terminal, status = int(sys.argv[1]), int(sys.argv[2])
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    started, starting = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(terminal, os.getpid())
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
                signal.signal(number, signal.SIG_DFL)
        for stream in range(3):
            os.dup2(terminal, stream)
        for descriptor in (terminal, status):
            os.set_inheritable(descriptor, False)
        try:
            os.execvp(sys.argv[3], sys.argv[3:])
        except OSError as error:
            os.write(2, f"{sys.argv[3]}: {error}\n".encode())
            os._exit(127)

    def tell(word: str, number: int) -> None:
        os.write(status, f"{word} {number}\n".encode())

    # The other end is closed when the program is there, in the foreground.
    os.close(starting)
    os.read(started, 1)
    tell("pid", pid)
    while True:
        _, how = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED)
        if os.WIFSTOPPED(how):
            tell("stopped", os.WSTOPSIG(how))
        elif os.WIFCONTINUED(how):
            tell("continued", 0)
        else:
            tell("exit", os.waitstatus_to_exitcode(how))
            break
    os.read(0, 1)


main()

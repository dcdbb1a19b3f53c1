"""Values are tried in a process of their own, where their unpickling does no harm."""

import functools
import json
import os
import select
import signal
import time

# How long a value may take to be unpickled in the process that tries it, and
# beyond that a multiple of what pickling took.
_PATIENCE = 2.0
_PATIENCE_TIMES = 10
_STARTS = "its unpickling starts processes"

_words = None


def install(words):
    """Take what puts an exception into one line."""
    global _words
    _words = words


def attempt(values, unpickle):
    """Unpickle values where it can do no harm.

    Args: values (list of objects that have `seconds`, which pickling took);
        unpickle (callable) takes one of them.
    Returns: dict of `id` of those that must not be unpickled to the reason.
    """
    failed = {}
    rest = list(values)
    while rest:
        tried, reason = _try_some(rest, unpickle)
        for value, why in tried:
            if why:
                failed[id(value)] = why
        rest = rest[len(tried) :]
        if reason is not None:
            failed[id(rest.pop(0))] = reason
    return failed


def _try_some(values, unpickle):
    """Try values until one takes the process with it.

    Returns: (list of (value, why not or ""), what became of the next one or
        None if it was not tried).
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _be_tried(values, unpickle, reading, writing)
        finally:
            os._exit(1)
    os.close(writing)
    tried, reason, got = [], None, b""
    try:
        while len(tried) < len(values) and reason is None:
            seconds = _PATIENCE + _PATIENCE_TIMES * values[len(tried)].seconds
            until = time.monotonic() + seconds
            while b"\n" not in got:
                left = until - time.monotonic()
                if left <= 0 or not select.select([reading], [], [], left)[0]:
                    reason = f"its unpickling has not ended after {seconds:.1f} s"
                    break
                piece = os.read(reading, 65536)
                if not piece:
                    reason = _how_it_ended(child)
                    child = None
                    break
                got += piece
            else:
                line, _, got = got.partition(b"\n")
                why = json.loads(line)
                tried.append((values[len(tried)], why))
                if why == _STARTS:
                    # The process is not what it was.
                    break
    finally:
        os.close(reading)
        if child is not None:
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                # Code of the cell's has waited for it.
                pass
    return tried, reason


def _how_it_ended(child):
    try:
        _, status = os.waitpid(child, 0)
    except ChildProcessError:
        return "its unpickling ends the process"
    if os.WIFSIGNALED(status):
        return f"its unpickling ends the process by signal {os.WTERMSIG(status)}"
    return f"its unpickling ends the process with status {os.WEXITSTATUS(status)}"


def _be_tried(values, unpickle, reading, writing):
    os.close(reading)
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    me = os.getpid()
    forks = []
    os.register_at_fork(before=functools.partial(forks.append, True))
    for value in values:
        reason = ""
        try:
            unpickle(value)
        except BaseException as error:
            reason = f"its unpickling raises {_words(error)}"
        if os.getpid() != me:
            os._exit(0)
        if forks or _has_children():
            reason = _STARTS
        os.write(writing, json.dumps(reason).encode() + b"\n")
        if reason == _STARTS:
            os._exit(0)
    os._exit(0)


def _has_children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True

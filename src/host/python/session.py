"""What a session's process sets up once: streams, namespace, environment."""

import _thread
import atexit
import builtins
import gc
import importlib
import io
import os
import random
import signal
import sys
import threading
import time
import types
import warnings

CONVENIENCE = (
    "os", "sys", "json", "subprocess", "shutil", "hashlib", "time", "re", "glob", "sqlite3",
    "socket",
)


class NoTerminal(io.TextIOBase):
    """Standard input of a session without a person: it is at its end."""

    name = "<stdin>"
    mode = "r"
    encoding = "utf-8"
    errors = "strict"

    def readable(self):
        return True

    def fileno(self):
        return 0

    def isatty(self):
        return False

    def read(self, size=-1, /):
        return ""

    def readline(self, size=-1, /):
        return ""

    def close(self):
        pass


def import_conveniences():
    """Import what every session has from the start."""
    for name in CONVENIENCE:
        try:
            importlib.import_module(name)
        except ImportError:
            # An interpreter built without sqlite3 is still a Python.
            pass


def namespace():
    """Make `__main__` anew, as the prompt has it, with the convenience modules.

    Returns: its dict.
    """
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        main.__dict__["__annotations__"] = {}
    sys.modules["__main__"] = main
    for name in CONVENIENCE:
        if name in sys.modules:
            main.__dict__[name] = sys.modules[name]
    return main.__dict__


def preload(names):
    """Import modules before the first fork.

    Raises: RuntimeError that names the module and the reason.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:
            raise RuntimeError(
                f"cannot preload `{name}`: {type(error).__name__}: {error}"
            ) from None


def settle():
    """Last step before forking: keep what is here out of the collector's way."""
    sys.argv = [""]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = [sys.executable]
    # Our thread never holds a lock that a forked child could need.
    warnings.filterwarnings(
        "ignore", r"This process .* is multi-threaded, use of fork", DeprecationWarning
    )
    find_thread_setters()
    # Some Pythons import a hundred modules when this is first called, which a
    # file in a session's working directory could stand in for.
    importlib.invalidate_caches()
    gc.collect()
    gc.freeze()


def be_another_process():
    """What a fork must not have in common with its parent."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    restore_threads()


def become(cwd, environment):
    """Turn a forked process into a session.

    Args: cwd (str); environment (dict of str), the whole of it.
    Raises: OSError if the directory cannot be entered.
    """
    for name in list(os.environ):
        if name not in environment:
            del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()
    os.chdir(cwd)
    importlib.invalidate_caches()


_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_asked = {}
_setters = []


def single_threaded_math():
    """Ask numerical libraries that are imported now for one thread: a process
    with more cannot be forked."""
    for name in _THREAD_VARIABLES:
        _asked[name] = os.environ.get(name)
        os.environ[name] = "1"


def end_single_threaded_math():
    """Take the request back out of the environment."""
    for name, value in _asked.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def find_thread_setters():
    """Find the libraries' own functions that set their number of threads."""
    if "numpy" not in sys.modules:
        return
    import ctypes

    for path in _numerical_libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("", "scipy_"):
            for suffix in ("", "64_"):
                setter = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                if setter is not None:
                    setter.argtypes = [ctypes.c_int]
                    _setters.append(setter)


def restore_threads():
    """Give numerical libraries the threads that they would have had."""
    for setter in _setters:
        setter(_threads_for("OPENBLAS_NUM_THREADS"))


def _threads_for(variable):
    for name in (variable, "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return len(os.sched_getaffinity(0))


def _numerical_libraries():
    """Paths of the OpenBLAS libraries that are mapped, from /proc/self/maps (proc(5))."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").split(None, 5)[5:]
            if path and "openblas" in path[0].lower() and path[0] not in found:
                found.append(path[0])
    return found


def path_times():
    """Modification times of the directories that imports search, in nanoseconds.

    Returns: dict of path to time; one that is not there has None.
    """
    times = {}
    for path in sys.path:
        if path:
            try:
                times[path] = os.stat(path).st_mtime_ns
            except OSError:
                times[path] = None
    return times


def watch_interrupt_handler(ours, set_foreign):
    """Have SIGINT handled by `ours`, and know when a cell replaces it."""
    original = signal.signal

    def set_handler(signalnum, handler):
        previous = original(signalnum, handler)
        if signalnum == signal.SIGINT:
            set_foreign(handler is not ours)
        return previous

    set_handler.__name__ = set_handler.__qualname__ = "signal"
    set_handler.__doc__ = original.__doc__
    set_handler.__module__ = "signal"
    signal.signal = set_handler
    set_handler(signal.SIGINT, ours)


def run_exit_handlers():
    """What `atexit` has, as when a program ends."""
    atexit._run_exitfuncs()


_Thread = threading.Thread
# As they were before any cell could replace them.
_start = _Thread.start
_start_raw = _thread.start_new_thread


class _CellThread(_Thread):
    """The thread of a cell: runs it whatever became of `Thread.run`."""

    def __init__(self, function, name):
        super().__init__(name=name, daemon=True)
        self._cell = function

    def run(self):
        function, self._cell = self._cell, None
        function()


def start_thread(name, function):
    """Start a thread that does not keep the process from ending.

    Args: name (str); function (callable without arguments).
    Raises: RuntimeError if there can be no more threads.
    """
    try:
        _start(_CellThread(function, name))
    except RuntimeError:
        raise
    except Exception:
        # A cell has replaced what `threading` is made of.
        _start_raw(function, ())


_JOIN_TURN = 0.05


def join_in_turns(on_cell_thread):
    """Let an interrupt reach a `fire` cell that waits for a thread.

    Args: on_cell_thread (callable), True on the thread of a `fire` cell.
    """
    original = _Thread.join

    def join(self, timeout=None):
        if timeout is None and on_cell_thread() and self is not threading.current_thread():
            while self._started.is_set() and self.is_alive():
                original(self, _JOIN_TURN)
        return original(self, timeout)

    join.__qualname__ = original.__qualname__
    join.__doc__ = original.__doc__
    join.__module__ = original.__module__
    _Thread.join = join

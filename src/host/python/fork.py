"""What goes into the child of a fork cell, what is looked at there, and how its
names come back.

Each new value is pickled on its own, so that one that cannot be pickled is one
name less. Functions of the session keep the session's namespace as their
globals, and classes and functions that the session had before stay the same
objects. A value whose unpickling could run anybody's code is unpickled in a
process of its own before it is sent.
"""

import asyncio
import ctypes
import faulthandler
import functools
import gc
import importlib
import io
import json
import mmap
import os
import pickle
import random
import select
import signal
import sys
import time
import types
import weakref

# By this name pickles call what is in here; nothing of it is ever imported.
NAME = "_pythond_fork"
VENDORED = "_pythond_cloudpickle"

# Buffers from here on have a file in memory each, which the session maps.
_LARGE = 1 << 20
_MOST_FILES = 200
_PIECE = 64 << 20
# How long a value may take to be unpickled in the process that tries it, and
# beyond that a multiple of what pickling took.
_PATIENCE = 2.0
_PATIENCE_TIMES = 10

# Modules whose objects run no code of a user's when they are unpickled.
_PLAIN_MODULES = frozenset(
    ("builtins", "types", "functools", "collections", "datetime", "decimal", "fractions", "uuid",
     "pathlib", "re", "array", "operator", "itertools", "numpy", "pandas", "_io", "zoneinfo",
     "copyreg", "ipaddress", "string", "enum", "typing")
)  # fmt: skip

_cloudpickle = None
_compare = None
_Pickler = None


def install(cloudpickle, compare):
    """Take the cloudpickle that we carry, and what compares (`fork_compare.py`).
    Once, before the first fork."""
    global _cloudpickle, _compare, _Pickler
    _cloudpickle, _compare = cloudpickle, compare
    _Pickler = _make_pickler(cloudpickle)


class TooLarge(Exception):
    """What came of the cell is larger than may come back."""


# In the session, before the fork.


def import_locks_are_free():
    """True while no thread imports a module."""
    for reference in list(importlib._bootstrap._module_locks.values()):
        lock = reference()
        if lock is not None and lock.owner is not None:
            return False
    return True


def threads():
    """How many threads have run Python and still do, this one included."""
    return len(sys._current_frames())


def obstacles(libraries):
    """What in this process a child cannot do without and does not have.

    Args: libraries (list of str), paths of what is loaded.
    Returns: (why it must not be forked or None, list of warnings).
    """
    warnings = []
    try:
        refusal = _cuda(libraries)
        _find_threads(libraries, warnings)
    except Exception as error:
        # A library that fails when it is asked says nothing about forking.
        refusal = None
        warnings.append(f"it is not known whether forking is safe: {_words(error)}")
    return refusal, warnings


def _cuda(libraries):
    holder = None
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        holder = "torch"
    else:
        for path in libraries:
            if os.path.basename(path).startswith("libcuda.so") and _has_context(path):
                holder = "a library"
    if holder is None:
        return None
    return (
        f"{holder} holds a CUDA context, which does not work in a child process; "
        "use `fire`, or fork in a session that has not used the GPU"
    )


def _has_context(path):
    driver = ctypes.CDLL(path)
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        # Not initialized, or no device.
        return False
    for number in range(count.value):
        device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), number) != 0:
            continue
        state = driver.cuDevicePrimaryCtxGetState
        if state(device, ctypes.byref(flags), ctypes.byref(active)) == 0 and active.value:
            return True
    return False


def _find_threads(libraries, warnings):
    """Libraries whose own threads are not in the child."""
    without = "its threads are not there in the child: using it there may wait for ever"
    if "polars" in sys.modules:
        warnings.append(f"polars: {without}")
    if "grpc._cython.cygrpc" in sys.modules:
        warnings.append(f"grpc: {without}")
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    if context is not None and getattr(context, "_initialized", False):
        warnings.append(f"tensorflow: {without}")
    if getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None):
        warnings.append(f"jax: {without}")


def remember(namespace):
    """The classes and functions that the session has: what is pickled in the
    child refers to them by identity.

    Returns: dict of `id` to object; it keeps them alive.
    """
    known = {}

    def add_class(cls):
        if id(cls) in known:
            return
        known[id(cls)] = cls
        for value in list(vars(cls).values()):
            if isinstance(value, type) and value.__module__ == cls.__module__:
                add_class(value)

    for value in list(namespace.values()):
        kind = type(value)
        if kind is types.FunctionType:
            known[id(value)] = value
        elif issubclass(kind, type):
            if value.__module__ == "__main__":
                add_class(value)
        elif getattr(kind, "__module__", None) == "__main__":
            add_class(kind)
    return known


# In the child.


def enter(stdout, stderr):
    """First in the child: put right what the fork left behind.

    Args: stdout, stderr (text streams), those of the cell.
    """
    gc.freeze()
    _forget_imports()
    sys.stdout, sys.stderr = stdout, stderr
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.enable(2)
    except (ValueError, OSError):
        pass
    asyncio.set_event_loop(None)
    for module, name in _LOCKS:
        _unlock(getattr(sys.modules.get(module), name, None))
    _unlock(_cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK)
    random.seed()
    _reseed()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)


def _forget_imports():
    """A thread that imported when we were forked is not here: what it held is
    free, and what it had half imported is not there."""
    bootstrap = importlib._bootstrap
    held = False
    for name, reference in list(bootstrap._module_locks.items()):
        lock = reference()
        if lock is not None and lock.owner is not None:
            bootstrap._module_locks.pop(name, None)
            held = True
    if not held:
        return
    bootstrap._blocking_on.clear()
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if getattr(spec, "_initializing", False):
            sys.modules.pop(name, None)


# Locks of modules that a thread which is not here may hold, and that nobody else
# puts in order after a fork.
_LOCKS = (
    ("_strptime", "_cache_lock"),
    ("asyncio.events", "_lock"),
    ("tempfile", "_once_lock"),
)


def _unlock(lock):
    if hasattr(lock, "_at_fork_reinit"):
        lock._at_fork_reinit()


def _reseed():
    # `numpy.random` would import it, where numpy does that when it is asked for.
    random = sys.modules.get("numpy.random")
    if random is None:
        return
    try:
        _unlock(random.mtrand._rand._bit_generator.lock)
        random.seed()
    except Exception as error:
        print(f"numpy.random has the numbers of the session: {_words(error)}", file=sys.stderr)


def _unlock_generators(namespace):
    """Generators of numpy's that a thread which is not here was drawing from."""
    module = sys.modules.get("numpy.random")
    if module is None:
        return
    for value in list(namespace.values()):
        kind = type(value)
        if kind is module.Generator:
            _unlock(value.bit_generator.lock)
        elif kind is module.RandomState:
            _unlock(value._bit_generator.lock)


def multiply():
    """Use what a thread that is not here may have locked for good: whoever waits
    for this process then sees that it does not answer."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "ones"):
        square = numpy.ones((96, 96))
        square @ square


class Before:
    """The namespace as the cell finds it."""

    def __init__(self, namespace, known):
        _unlock_generators(namespace)
        self.namespace = namespace
        self.known = known
        self.values = dict(namespace)
        self.digests = _compare.digests(self.values)


def _words(error):
    """An exception in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    name = type(error).__name__
    return f"{name}: {text}"[:500] if text else name


def _make_pickler(cloudpickle):
    class Pickler(cloudpickle.Pickler):
        def __init__(self, file, before, buffers):
            super().__init__(file, 5, buffers)
            self._known = before.known
            self._namespace = before.namespace
            # Nothing was met whose unpickling could run a user's code.
            self.plain = True

        def reducer_override(self, value):
            if id(value) in self._known:
                return known, (id(value),)
            kind = type(value)
            if issubclass(kind, type):
                if kind is not type or value.__mro__[1:] != (object,):
                    self.plain &= value.__module__ != "__main__"
            elif kind is not types.FunctionType:
                if isinstance(value, io.IOBase) and kind not in (io.BytesIO, io.StringIO):
                    raise pickle.PicklingError("an open file belongs to the process that opened it")
                module = kind.__module__
                if not isinstance(module, str):
                    self.plain = False
                elif module.partition(".")[0] not in _PLAIN_MODULES:
                    self.plain &= module.startswith(VENDORED)
            return super().reducer_override(value)

        def _dynamic_function_reduce(self, function):
            if function.__globals__ is not self._namespace:
                return super()._dynamic_function_reduce(function)
            code, _, _, _, closure = self._function_getnewargs(function)
            state, slots = cloudpickle._function_getstate(function)
            slots["__globals__"] = {}
            return session_function, (code, closure), (state, slots), None, None, set_function

    return Pickler


# What pickles name. In the session other functions stand for the first two.


def known(identity):
    raise RuntimeError("only the session knows its objects")


def session_function(code, closure):
    raise RuntimeError("only the session knows its namespace")


def set_function(function, state):
    """What a function has beside its code."""
    attributes, slots = state
    function.__dict__.update(attributes)
    closure = slots.pop("__closure__")
    slots.pop("__globals__")
    slots.pop("_cloudpickle_submodules")
    for cell, source in zip(function.__closure__ or (), closure or (), strict=False):
        try:
            cell.cell_contents = source.cell_contents
        except ValueError:
            # It is empty in both.
            pass
    for name, value in slots.items():
        setattr(function, name, value)


for _function in (known, session_function, set_function):
    _function.__module__ = NAME


class _Value:
    """A new value: its names, its pickle and its large buffers."""

    def __init__(self, names):
        self.names = names
        self.pickle = b""
        self.file = None
        self.buffers = []
        self.plain = True
        self.seconds = 0.0

    def close(self):
        for file in self.files():
            os.close(file)

    def files(self):
        files = [] if self.file is None else [self.file[0]]
        return files + [file for file, _ in self.buffers]

    def header(self):
        return {
            "names": self.names,
            "file": None if self.file is None else self.file[1],
            "buffers": [size for _, size in self.buffers],
            "plain": self.plain,
        }


class _Budget:
    """What may still come back."""

    def __init__(self, most):
        self.most = most
        self.used = 0
        self.files = 0

    def take(self, count, names):
        self.used += count
        if self.used > self.most:
            raise TooLarge(
                f"what this cell brings back has more than {self.most} bytes "
                f"(reached while `{names[0]}` was pickled); nothing was merged. "
                "Raise the limit with `--max-result=BYTES`, or with "
                "`limits.fork_result_bytes` in the daemon's configuration"
            )


class _Spool(io.RawIOBase):
    """Takes a pickle: a short one in memory, a long one in a file in memory."""

    def __init__(self, budget, names):
        self.budget = budget
        self.names = names
        self.parts = []
        self.size = 0
        self.file = None

    def write(self, data):
        count = data.nbytes if isinstance(data, memoryview) else len(data)
        self.budget.take(count, self.names)
        self.size += count
        if self.file is None and self.size < _LARGE:
            self.parts.append(bytes(data))
        else:
            if self.file is None:
                self.file = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                parts, self.parts = self.parts, []
                _write_all(self.file, b"".join(parts))
            _write_all(self.file, data)
        return count


def _write_all(file, data):
    view = memoryview(data)
    if view.ndim != 1 or view.format != "B":
        view = view.cast("B")
    at = 0
    while at < len(view):
        at += os.write(file, view[at : at + _PIECE])


def _pickle(names, value, before, budget):
    """Pickle one value.

    Raises: TooLarge; whatever makes it impossible.
    """
    found = _Value(names)
    spool = _Spool(budget, names)

    def keep(buffer):
        raw = buffer.raw()
        if raw.nbytes < _LARGE or budget.files >= _MOST_FILES:
            return True
        budget.take(raw.nbytes, names)
        budget.files += 1
        file = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        found.buffers.append((file, raw.nbytes))
        _write_all(file, raw)
        return False

    used, files = budget.used, budget.files
    began = time.perf_counter()
    try:
        pickler = _Pickler(spool, before, keep)
        pickler.dump(value)
    except BaseException:
        if spool.file is not None:
            os.close(spool.file)
        found.close()
        budget.used, budget.files = used, files
        raise
    found.seconds = time.perf_counter() - began
    found.plain = pickler.plain
    if spool.file is None:
        found.pickle = b"".join(spool.parts)
    else:
        found.file = (spool.file, spool.size)
    return found


def collect(before, most, send):
    """Look what the cell has changed, and send what is to come back.

    Args: before (Before); most (int), bytes that may come back; send (callable)
        takes header (bytes), pickle (bytes), descriptors (list of int).
    Returns: (skipped, mutated, unchecked): a dict of name to reason, two lists.
    Raises: TooLarge.
    """
    namespace, old = before.namespace, before.values
    after = dict(namespace)
    groups, mutated, unchecked = {}, [], []
    until = _compare.deadline()
    for name, value in after.items():
        if not isinstance(name, str) or name in _compare.OWN_NAMES:
            continue
        if name not in old or old[name] is not value:
            groups.setdefault(id(value), (value, []))[1].append(name)
        elif name in before.digests:
            verdict = _compare.look_again(before.digests[name], value, until)
            if verdict == "changed":
                mutated.append(name)
            elif verdict == "unknown":
                unchecked.append(name)
    sys.modules[NAME] = _as_module()
    sys.modules[VENDORED] = _cloudpickle
    skipped, values = {}, []
    budget = _Budget(most)
    for value, names in groups.values():
        if isinstance(value, io.IOBase) and not value.closed:
            try:
                # Nobody else will write what waits there.
                value.flush()
            except Exception:
                pass
        if value is namespace:
            for name in names:
                skipped[_text(name)] = "it is the namespace itself"
            continue
        try:
            values.append(_pickle(names, value, before, budget))
        except TooLarge:
            raise
        except BaseException as error:
            for name in names:
                skipped[_text(name)] = _words(error)
    failed = _try([value for value in values if not value.plain], before)
    for value in values:
        reason = failed.get(id(value))
        if reason is not None:
            for name in value.names:
                skipped[_text(name)] = reason
            continue
        header = value.header()
        send(json.dumps(header).encode(), value.pickle, value.files())
        value.close()
    return skipped, sorted(map(_text, mutated)), sorted(map(_text, unchecked))


def _text(name):
    """A name without lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


def _as_module():
    module = types.ModuleType(NAME)
    for function in (known, session_function, set_function):
        setattr(module, function.__name__, function)
    return module


# Values are tried in a process of their own.

_STARTS = "its unpickling starts processes"


def _try(values, before):
    """Unpickle values where it can do no harm.

    Returns: dict of `id` of those that must not be unpickled to the reason.
    """
    failed = {}
    rest = list(values)
    while rest:
        tried, reason = _try_some(rest, before)
        for value, why in tried:
            if why:
                failed[id(value)] = why
        rest = rest[len(tried) :]
        if reason is not None:
            failed[id(rest.pop(0))] = reason
    return failed


def _try_some(values, before):
    """Try values until one takes the process with it.

    Returns: (list of (value, why not or ""), what became of the next one or
        None if it was not tried).
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _be_tried(values, before, reading, writing)
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


def _be_tried(values, before, reading, writing):
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
            pickled = value.pickle if value.file is None else _mapped(*value.file)
            buffers = [_mapped(*buffer) for buffer in value.buffers]
            _load(pickled, buffers, before.known, before.namespace)
        except BaseException as error:
            reason = f"its unpickling raises {_words(error)}"
        if os.getpid() != me:
            os._exit(0)
        if forks or _has_children():
            reason = _STARTS
        _write_all(writing, json.dumps(reason).encode() + b"\n")
        if reason == _STARTS:
            os._exit(0)
    os._exit(0)


def _mapped(file, size):
    return mmap.mmap(file, size, access=mmap.ACCESS_COPY)


def _has_children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


# In the session, after the end.


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, buffers, known, namespace):
        super().__init__(file, buffers=buffers)
        self._names = {
            "known": known.__getitem__,
            "session_function": functools.partial(_session_function, namespace),
            "set_function": set_function,
        }

    def find_class(self, module, name):
        if module == NAME:
            return self._names[name]
        if module == VENDORED:
            return getattr(_cloudpickle, name)
        return super().find_class(module, name)


def _session_function(namespace, code, closure):
    return types.FunctionType(code, namespace, None, None, closure)


class _Reader(io.RawIOBase):
    """Bytes in memory as a file, without a copy of all of them."""

    def __init__(self, view):
        self.view = memoryview(view)
        self.at = 0

    def readable(self):
        return True

    def readinto(self, target):
        piece = self.view[self.at : self.at + len(target)]
        target[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


def _load(pickled, buffers, known, namespace):
    if isinstance(pickled, bytes):
        file = io.BytesIO(pickled)
    else:
        file = io.BufferedReader(_Reader(pickled), _LARGE)
    return _Unpickler(file, buffers, known, namespace).load()


def load(pickled, mapped, buffers, known, namespace, unmap):
    """Unpickle a value in the session. May run any code.

    Args: pickled (bytes); mapped ((start, length) or None), where a long pickle
        is instead; buffers (list of (start, length)), the large buffers; unmap
        (callable) ends a mapping.
    """
    views = [_view(start, length, unmap) for start, length in buffers]
    if mapped is not None:
        pickled = _view(*mapped, unmap)
    return _load(pickled, views, known, namespace)


def _view(start, length, unmap):
    view = (ctypes.c_ubyte * length).from_address(start)
    weakref.finalize(view, unmap, start, length).atexit = False
    return memoryview(view).cast("B")


def merge(namespace, names):
    """Set names, all at once.

    Args: names (dict).
    Returns: what they named before; letting go of it may run any code.
    """
    before = [namespace.get(name) for name in names]
    namespace.update(names)
    return before

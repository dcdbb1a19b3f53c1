"""What a fork cell has changed, and how it comes back.

Each new value is pickled on its own, so that one that cannot be pickled is one
name less. Functions of the session keep the session's namespace as their
globals, and classes and functions that the session had before stay the same
objects. A value whose unpickling could run anybody's code is unpickled in a
process of its own before it is sent (`fork_trial.py`).
"""

import ctypes
import functools
import io
import json
import mmap
import os
import pickle
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
# Modules whose objects run no code of a user's when they are unpickled.
_PLAIN_MODULES = frozenset(
    ("builtins", "types", "functools", "collections", "datetime", "decimal", "fractions", "uuid",
     "pathlib", "re", "array", "operator", "itertools", "numpy", "pandas", "_io", "zoneinfo",
     "copyreg", "ipaddress", "string", "enum", "typing")
)  # fmt: skip

_cloudpickle = None
_compare = None
_trial = None
_words = None
_Pickler = None


def install(cloudpickle, compare, trial, words):
    """Take the cloudpickle that we carry, the modules of `fork_compare.py` and
    `fork_trial.py`, and what puts an exception into one line. Once, before the
    first fork."""
    global _cloudpickle, _compare, _trial, _words, _Pickler
    _cloudpickle, _compare, _trial, _words = cloudpickle, compare, trial, words
    _Pickler = _make_pickler(cloudpickle)


class TooLarge(Exception):
    """What came of the cell is larger than may come back."""


# In the child.


class Before:
    """The namespace as the cell finds it."""

    def __init__(self, namespace, known):
        self.namespace = namespace
        self.known = known
        self.values = dict(namespace)
        self.digests = _compare.digests(self.values)


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
    risky = [value for value in values if not value.plain]
    failed = _trial.attempt(risky, functools.partial(_unpickle, before))
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


def _unpickle(before, value):
    """Unpickle a value here, to see whether that can be done."""
    pickled = value.pickle if value.file is None else _mapped(*value.file)
    buffers = [_mapped(*buffer) for buffer in value.buffers]
    _load(pickled, buffers, before.known, before.namespace)


def _mapped(file, size):
    return mmap.mmap(file, size, access=mmap.ACCESS_COPY)


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

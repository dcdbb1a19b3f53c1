"""The session's event loop: top-level `await`, and tasks that go on between cells."""

import asyncio
import inspect
import threading

_loop = None
_cell_task = None
_create_task = asyncio.create_task


def create_task(coro, **options):
    """`asyncio.create_task`, in a cell without `await` too: the task then runs
    in the session's loop, as soon as the cell has ended."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        if threading.current_thread() is not threading.main_thread():
            raise
        return _session_loop().create_task(coro, **options)
    return _create_task(coro, **options)


def install():
    """Let cells start tasks whether they await or not."""
    create_task.__module__ = _create_task.__module__
    asyncio.create_task = asyncio.tasks.create_task = create_task


def _session_loop():
    """The session's loop, made when it is first needed; the current one."""
    global _loop
    if _loop is None or _loop.is_closed():
        _loop = asyncio.new_event_loop()
    asyncio.set_event_loop(_loop)
    return _loop


def _adopt():
    """Serve the loop that a cell made by `asyncio.get_event_loop()`."""
    global _loop
    if _loop is None:
        local = getattr(asyncio.get_event_loop_policy(), "_local", None)
        _loop = getattr(local, "_loop", None)


async def _cell(codes, namespace):
    """All of a cell in one task, also what stands before its first `await`."""
    value = None
    for code in codes:
        value = eval(code, namespace)
        if code.co_flags & inspect.CO_COROUTINE:
            value = await value
    return value


def run(codes, namespace):
    """Run a cell that awaits until it ends; other tasks run meanwhile.

    Args: codes (list of code objects), statements first, then the last
        expression; namespace (dict).
    Returns: the value of the last of them.
    Raises: whatever it raised; KeyboardInterrupt if it was interrupted.
    """
    global _cell_task
    loop = _session_loop()
    task = _cell_task = loop.create_task(_cell(codes, namespace))
    interrupted = False
    try:
        while True:
            try:
                return loop.run_until_complete(task)
            except asyncio.CancelledError:
                if interrupted or getattr(task, "_pythond_interrupted", False):
                    raise KeyboardInterrupt from None
                raise
            except (KeyboardInterrupt, SystemExit):
                # Raised by the cell's own code it has ended the task. Raised
                # elsewhere, in another task or in the wait for events, the
                # cell still has to be ended.
                if task.done():
                    raise
                interrupted = True
                task = _cell_task = _revived(loop, task)
                task.cancel()
    finally:
        _cell_task = None


def _revived(loop, task):
    """Return a task that goes on: an exception that hits the loop's own code
    between two steps of a task leaves one whose next step nobody has scheduled."""
    ready = getattr(loop, "_ready", None)
    if ready is None or getattr(task, "_fut_waiter", task) is not None:
        return task
    for handle in list(ready):
        if getattr(getattr(handle, "_callback", None), "__self__", None) is task:
            return task
    task._log_destroy_pending = False
    return loop.create_task(task.get_coro())


def interrupt():
    """Decide what an interrupt does while a cell awaits. Called by the signal handler.

    Returns: True if KeyboardInterrupt is to be raised here and now.
    """
    task = _cell_task
    if task is None or task.done():
        return True
    if asyncio.current_task(_loop) is task:
        return True
    # The stack belongs to another task or to the loop: only the cell's task
    # may be hit.
    try:
        task._pythond_interrupted = True
    except AttributeError:
        return True
    task.cancel()
    _loop.call_soon_threadsafe(int)
    return False


def has_work():
    """True once there is a loop: tasks, timers, servers, pipes and calls from
    other threads wait for it to run."""
    _adopt()
    return _loop is not None and not _loop.is_closed() and not _loop.is_running()


def serve(descriptors, longest):
    """Let tasks run until one of the descriptors can be read.

    Args: descriptors (list of int); longest (float or None), seconds after
        which it returns anyway.
    """
    global _loop
    asyncio.set_event_loop(_loop)
    watched = []
    timer = None
    try:
        for descriptor in descriptors:
            _loop.add_reader(descriptor, _loop.stop)
            watched.append(descriptor)
        if longest is not None:
            timer = _loop.call_later(longest, _loop.stop)
        try:
            _loop.run_forever()
        except OSError:
            # A cell closed the loop's own descriptors: it can never run again.
            _loop = None
            raise
    finally:
        if _loop is not None:
            if timer is not None:
                timer.cancel()
            for descriptor in watched:
                _loop.remove_reader(descriptor)


def run_beside(codes, namespace, begun):
    """Run a cell that awaits on a thread of its own, in a loop of its own; tasks
    that are left when it ends are cancelled.

    Args: codes, namespace as for `run`; begun (callable) is given the loop and
        the cell's task before anything runs.
    Returns, raises: as `run`.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        task = loop.create_task(_cell(codes, namespace))
        begun(loop, task)
        try:
            return loop.run_until_complete(task)
        except asyncio.CancelledError:
            if getattr(task, "_pythond_interrupted", False):
                raise KeyboardInterrupt from None
            raise
    finally:
        _close(loop)


def _close(loop):
    """End what is left in a loop, as `asyncio.run` does."""
    try:
        rest = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        if rest:
            loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except RuntimeError:
        # The loop was left in the middle of a turn and cannot run again.
        pass
    finally:
        asyncio.set_event_loop(None)
        try:
            loop.close()
        except RuntimeError:
            pass


def cancel_beside(loop, task):
    """Interrupt the cell of `run_beside`. Called from another thread."""

    def cancel():
        try:
            task._pythond_interrupted = True
        except AttributeError:
            pass
        task.cancel()

    try:
        loop.call_soon_threadsafe(cancel)
    except RuntimeError:
        # It has closed its loop: it is about to end.
        pass

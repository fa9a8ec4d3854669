"""CPython's own executor tests, adapted to KeystoneExecutor.

Adapted from Lib/test/test_concurrent_futures (executor.py, test_shutdown.py,
test_wait.py, test_as_completed.py) of CPython 3.13.

Copyright (c) 2001-2024 Python Software Foundation; All Rights Reserved.
Used under the PSF License Agreement, of which PSF-LICENSE.txt beside this file
is a copy. Changes: the executor is KeystoneExecutor, tests of the internals of
threads and processes are left out, test.support is replaced by what is needed
of it, times are shorter, and programs are run by this repository's fixtures.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
import time
import weakref
from concurrent import futures
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING, Future

import pytest

from keystone_mpi import KeystoneExecutor

WORKERS = 5


def create_future(state=PENDING, exception=None, result=None):
    f = Future()
    f._state = state
    f._exception = exception
    f._result = result
    return f


PENDING_FUTURE = create_future(state=PENDING)
RUNNING_FUTURE = create_future(state=RUNNING)
CANCELLED_FUTURE = create_future(state=CANCELLED)
CANCELLED_AND_NOTIFIED_FUTURE = create_future(state=CANCELLED_AND_NOTIFIED)
EXCEPTION_FUTURE = create_future(state=FINISHED, exception=OSError())
SUCCESSFUL_FUTURE = create_future(state=FINISHED, result=42)


def mul(x, y):
    return x * y


def capture(*args, **kwargs):
    return args, kwargs


def sleep_and_raise(t):
    time.sleep(t)
    raise Exception("this is an exception")


class MyObject:
    def my_method(self):
        pass


def make_dummy_object(_):
    return MyObject()


@pytest.fixture
def executor():
    began = time.monotonic()
    made = KeystoneExecutor(max_workers=WORKERS)
    yield made
    made.shutdown(wait=True)
    assert time.monotonic() - began < 60, "synchronization issue: test lasted too long"


class TestExecutor:
    def test_submit(self, executor):
        assert executor.submit(pow, 2, 8).result() == 256

    def test_submit_keyword(self, executor):
        assert executor.submit(mul, 2, y=8).result() == 16
        assert executor.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
        with pytest.raises(TypeError):
            executor.submit(fn=capture, arg=1)
        with pytest.raises(TypeError):
            executor.submit(arg=1)

    def test_map(self, executor):
        expected = list(map(pow, range(10), range(10)))
        assert list(executor.map(pow, range(10), range(10))) == expected
        assert list(executor.map(pow, range(10), range(10), chunksize=3)) == expected

    def test_map_exception(self, executor):
        i = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert i.__next__() == (0, 1)
        assert i.__next__() == (0, 1)
        with pytest.raises(ZeroDivisionError):
            i.__next__()

    def test_map_timeout(self, executor):
        results = []
        with pytest.raises(futures.TimeoutError):  # noqa: PT012
            for i in executor.map(time.sleep, [0, 0, 1.2], timeout=0.8):
                results.append(i)
        assert results == [None, None]

    def test_shutdown_race_issue12456(self, executor):
        executor.map(str, [2] * (WORKERS + 1))
        executor.shutdown()

    def test_no_stale_references(self, executor):
        my_object = MyObject()
        my_object_collected = threading.Event()
        my_object_callback = weakref.ref(my_object, lambda obj: my_object_collected.set())
        # Deliberately discarding the future.
        executor.submit(my_object.my_method)
        del my_object
        assert my_object_collected.wait(timeout=10.0), "Stale reference not collected within timeout."
        assert my_object_callback() is None

    @pytest.mark.parametrize("number", [0, -1])
    def test_max_workers_negative(self, number):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            KeystoneExecutor(max_workers=number)

    def test_free_reference(self, executor):
        # Issue #14406: Result iterator should not keep an internal reference to result objects.
        for obj in executor.map(make_dummy_object, range(10)):
            wr = weakref.ref(obj)
            del obj
            for _ in range(100):  # the engine's thread may be about to let go of it
                gc.collect()
                if wr() is None:
                    break
                time.sleep(0.01)
            assert wr() is None


class TestShutdown:
    def test_run_after_shutdown(self, executor):
        executor.shutdown()
        with pytest.raises(RuntimeError):
            executor.submit(pow, 2, 5)

    def test_interpreter_shutdown(self, run):
        done = run(
            """
            from time import sleep
            from keystone_mpi import KeystoneExecutor
            def sleep_and_print(t, msg):
                sleep(t)
                print(msg)
            if __name__ == "__main__":
                t = KeystoneExecutor(5)
                t.submit(sleep_and_print, 0.5, "apple")
            """
        ).check()
        assert done.stderr == ""
        assert done.stdout.strip() == "apple"

    def test_submit_after_interpreter_shutdown(self, run):
        done = run(
            """
            import atexit
            @atexit.register
            def run_last():
                try:
                    t.submit(id, None)
                except RuntimeError:
                    print("runtime-error")
                    raise
            from keystone_mpi import KeystoneExecutor
            if __name__ == "__main__":
                t = KeystoneExecutor(5)
                t.submit(id, 42).result()
            """
        )
        assert "cannot schedule new futures" in done.stderr
        assert done.stdout.strip() == "runtime-error"

    def test_hang_issue12364(self, executor):
        fs = [executor.submit(time.sleep, 0.1) for _ in range(50)]
        executor.shutdown()
        for f in fs:
            f.result()

    def test_cancel_futures(self, executor):
        fs = [executor.submit(time.sleep, 0.1) for _ in range(50)]
        executor.shutdown(cancel_futures=True)
        # We can't guarantee the exact number of cancellations, but we can guarantee that *some* were
        # cancelled. With few workers, many of the submitted futures should have been cancelled.
        cancelled = [fut for fut in fs if fut.cancelled()]
        assert len(cancelled) > 20
        others = [fut for fut in fs if not fut.cancelled()]
        for fut in others:
            assert fut.done(), f"{fut._state=}"
            assert fut.exception() is None

    def test_hang_gh83386(self, run):
        """shutdown(wait=False) doesn't hang at exit with running futures."""
        done = run(
            """
            from time import sleep
            from keystone_mpi import KeystoneExecutor
            def sleep_and_print(t, msg):
                sleep(t)
                print(msg)
            if __name__ == "__main__":
                t = KeystoneExecutor(max_workers=3)
                t.submit(sleep_and_print, 0.5, "apple")
                t.shutdown(wait=False)
            """
        ).check()
        assert done.stderr == ""
        assert done.stdout.strip() == "apple"

    def test_hang_gh94440(self):
        """shutdown(wait=True) doesn't hang when a future was cancelled right before shutdown."""

        def timeout(_signum, _frame):
            raise RuntimeError("timed out waiting for shutdown")

        executor = KeystoneExecutor(max_workers=1)
        executor.submit(int).result()
        old_handler = signal.signal(signal.SIGALRM, timeout)
        try:
            signal.alarm(5)
            executor.submit(int).cancel()
            executor.shutdown(wait=True)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, old_handler)

    def test_context_manager_shutdown(self):
        with KeystoneExecutor(max_workers=5) as e:
            assert list(e.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
        with pytest.raises(RuntimeError):
            e.submit(abs, 1)

    def test_del_shutdown(self):
        executor = KeystoneExecutor(max_workers=5)
        res = executor.map(abs, range(-5, 5))
        del executor
        # Make sure the results were all computed before the executor got shutdown.
        assert all(r == abs(v) for r, v in zip(res, range(-5, 5), strict=True))

    def test_shutdown_no_wait(self):
        executor = KeystoneExecutor(max_workers=5)
        res = executor.map(abs, range(-5, 5))
        executor.shutdown(wait=False)
        assert all(r == abs(v) for r, v in zip(res, range(-5, 5), strict=True))

    def test_cancel_futures_wait_false(self, run):
        done = run(
            """
            from time import sleep
            from keystone_mpi import KeystoneExecutor
            def sleep_and_print(t, msg):
                sleep(t)
                print(msg)
            if __name__ == "__main__":
                t = KeystoneExecutor()
                t.submit(sleep_and_print, .1, "apple")
                t.shutdown(wait=False, cancel_futures=True)
            """
        ).check()
        assert done.stderr == ""
        assert done.stdout.strip() in ("apple", "")


class TestWait:
    def test_20369(self, executor):
        # See https://bugs.python.org/issue20369
        future = executor.submit(time.sleep, 0.2)
        done, not_done = futures.wait([future, future], return_when=futures.ALL_COMPLETED)
        assert done == {future}
        assert not_done == set()

    def test_first_completed(self, executor):
        future1 = executor.submit(mul, 21, 2)
        future2 = executor.submit(time.sleep, 0.5)
        done, not_done = futures.wait(
            [CANCELLED_FUTURE, future1, future2], return_when=futures.FIRST_COMPLETED
        )
        assert done == {future1}
        assert not_done == {CANCELLED_FUTURE, future2}

    def test_first_completed_some_already_completed(self, executor):
        future1 = executor.submit(time.sleep, 0.2)
        finished, pending = futures.wait(
            [CANCELLED_AND_NOTIFIED_FUTURE, SUCCESSFUL_FUTURE, future1], return_when=futures.FIRST_COMPLETED
        )
        assert finished == {CANCELLED_AND_NOTIFIED_FUTURE, SUCCESSFUL_FUTURE}
        assert pending == {future1}

    def test_first_exception(self, executor):
        future1 = executor.submit(mul, 2, 21)
        future2 = executor.submit(sleep_and_raise, 0.5)
        future3 = executor.submit(time.sleep, 1.5)
        finished, pending = futures.wait([future1, future2, future3], return_when=futures.FIRST_EXCEPTION)
        assert finished == {future1, future2}
        assert pending == {future3}

    def test_first_exception_some_already_complete(self, executor):
        future1 = executor.submit(divmod, 21, 0)
        future2 = executor.submit(time.sleep, 0.5)
        finished, pending = futures.wait(
            [SUCCESSFUL_FUTURE, CANCELLED_FUTURE, CANCELLED_AND_NOTIFIED_FUTURE, future1, future2],
            return_when=futures.FIRST_EXCEPTION,
        )
        assert finished == {SUCCESSFUL_FUTURE, CANCELLED_AND_NOTIFIED_FUTURE, future1}
        assert pending == {CANCELLED_FUTURE, future2}

    def test_first_exception_one_already_failed(self, executor):
        future1 = executor.submit(time.sleep, 0.2)
        finished, pending = futures.wait([EXCEPTION_FUTURE, future1], return_when=futures.FIRST_EXCEPTION)
        assert finished == {EXCEPTION_FUTURE}
        assert pending == {future1}

    def test_all_completed(self, executor):
        future1 = executor.submit(divmod, 2, 0)
        future2 = executor.submit(mul, 2, 21)
        everything = [
            SUCCESSFUL_FUTURE, CANCELLED_AND_NOTIFIED_FUTURE, EXCEPTION_FUTURE, future1, future2
        ]  # fmt: skip
        finished, pending = futures.wait(everything, return_when=futures.ALL_COMPLETED)
        assert finished == set(everything)
        assert pending == set()

    def test_timeout(self, executor):
        short_timeout = 0.050
        future = executor.submit(time.sleep, short_timeout * 10)
        finished, pending = futures.wait(
            [CANCELLED_AND_NOTIFIED_FUTURE, EXCEPTION_FUTURE, SUCCESSFUL_FUTURE, future],
            timeout=short_timeout,
            return_when=futures.ALL_COMPLETED,
        )
        assert finished == {CANCELLED_AND_NOTIFIED_FUTURE, EXCEPTION_FUTURE, SUCCESSFUL_FUTURE}
        assert pending == {future}

    def test_pending_calls_race(self, executor):
        # Issue #14406: multi-threaded race condition when waiting on all futures.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            fs = {executor.submit(mul, i, 2) for i in range(100)}
            futures.wait(fs, return_when=futures.ALL_COMPLETED)
        finally:
            sys.setswitchinterval(interval)


class TestAsCompleted:
    def test_no_timeout(self, executor):
        future1 = executor.submit(mul, 2, 21)
        future2 = executor.submit(mul, 7, 6)
        everything = {
            CANCELLED_AND_NOTIFIED_FUTURE, EXCEPTION_FUTURE, SUCCESSFUL_FUTURE, future1, future2
        }  # fmt: skip
        assert set(futures.as_completed(everything)) == everything

    @pytest.mark.parametrize("timeout", [0, 0.1])
    def test_future_times_out(self, executor, timeout):
        """``futures.as_completed`` timing out before completing its final future."""
        already_completed = {CANCELLED_AND_NOTIFIED_FUTURE, EXCEPTION_FUTURE, SUCCESSFUL_FUTURE}
        completed_futures = set()
        future = executor.submit(time.sleep, 0.5)
        with pytest.raises(futures.TimeoutError):  # noqa: PT012
            for f in futures.as_completed(already_completed | {future}, timeout):
                completed_futures.add(f)
        assert completed_futures == already_completed

    def test_duplicate_futures(self, executor):
        # Issue 20367. Duplicate futures should not raise exceptions or give duplicate responses.
        # Issue #31641: accept arbitrary iterables.
        future1 = executor.submit(time.sleep, 0.3)
        completed = list(futures.as_completed(itertools.repeat(future1, 3)))
        assert len(completed) == 1

    def test_correct_timeout_exception_msg(self):
        futures_list = [CANCELLED_AND_NOTIFIED_FUTURE, PENDING_FUTURE, RUNNING_FUTURE, SUCCESSFUL_FUTURE]
        with pytest.raises(futures.TimeoutError) as cm:
            list(futures.as_completed(futures_list, timeout=0))
        assert str(cm.value) == "2 (of 4) futures unfinished"

"""Waiting for anything: descriptors, wake-ups from other threads, or a deadline.

Rule: waiting costs nothing and ends within microseconds of its cause.

    epoll (descriptors, event counter) <- select() with a microsecond timeout
"""

from __future__ import annotations

import os
import select
import threading


class Waiter:
    """An epoll set with a thread-safe `wake`.

    `select.epoll.poll` rounds its timeout up to milliseconds; an epoll
    descriptor is itself selectable, and `select.select` keeps microseconds.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._event, select.EPOLLIN)
        self._selectable = [self._epoll.fileno()]
        self._closed = False
        # Reentrant: a signal handler may call `wake` in the thread that is just doing so.
        self._lock = threading.RLock()

    def watch(self, fileno: int) -> None:
        """Wait for `fileno` to become readable, too."""
        self._epoll.register(fileno, select.EPOLLIN)

    def unwatch(self, fileno: int) -> None:
        """Forget `fileno`; it may be closed already."""
        try:
            self._epoll.unregister(fileno)
        except (FileNotFoundError, ValueError, OSError):
            # A closed descriptor has left the set by itself.
            return

    def wake(self) -> None:
        """Make `wait` return; callable from any thread and from signal handlers."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._event, 1)

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s`; True when a descriptor is readable or `wake` was called."""
        ready, _, _ = select.select(self._selectable, (), (), max(0.0, timeout_s))
        if not ready:
            return False
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        return True

    def close(self) -> None:
        """Release both descriptors."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._epoll.close()
                os.close(self._event)

"""Between a rank and Slurm's pmi2 plugin while MPI_Init runs: requests that the plugin can read.

Rule: the plugin reads a PMI-1 request of at most 1024 bytes, but says that a
value alone may have 1024; it never answers a longer request, and the rank
hangs. MPICH 5 publishes 4 KiB of memory from the start of its UCX address on,
in pieces of that size with runs of zeros squeezed out, so that what happens to
lie on the heap decides whether ranks start. The relay changes one number on
the way and is gone before MPI_Init returns to its caller.

    rank --socket pair--> relay process --> PMI_FD      "vallen_max=1024" <--> "vallen_max=512"
    after MPI_Init: the rank's end of the pair becomes PMI_FD itself (dup2)

This file is also the relay's program: nothing but the standard library here.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, MutableMapping

VALUE_BYTES = 512
"""A request has some 70 bytes beside its value."""
_FD_VARIABLE = "PMI_FD"
_READ_BYTES = 1 << 16
_END_S = 5.0


@contextlib.contextmanager
def short_requests(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Have a relay at `PMI_FD` for the time of MPI_Init.

    Parameters
    ----------
    environ : mutable mapping
        The process's variables; as before afterwards.
    """
    told = environ[_FD_VARIABLE]
    pmi_fd = int(told)
    ours, theirs = socket.socketpair()
    our_fd = ours.detach()
    relay = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(pmi_fd), str(theirs.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(pmi_fd, theirs.fileno()),
    )
    theirs.close()
    environ[_FD_VARIABLE] = str(our_fd)
    try:
        yield
    finally:
        environ[_FD_VARIABLE] = told
        # Every request has been answered: nothing is on its way in the relay.
        os.dup2(pmi_fd, our_fd, inheritable=False)
        assert relay.stdin is not None
        relay.stdin.close()
        try:
            relay.wait(_END_S)
        except subprocess.TimeoutExpired:
            relay.kill()
            relay.wait()


def relay(pmi_fd: int, rank_fd: int, end_fd: int) -> None:
    """Pass bytes on, both ways, until `end_fd` or one of the others is closed."""
    while True:
        ready, _, _ = select.select([pmi_fd, rank_fd, end_fd], (), ())
        if end_fd in ready:
            return
        for source, target in ((rank_fd, pmi_fd), (pmi_fd, rank_fd)):
            if source not in ready:
                continue
            data = os.read(source, _READ_BYTES)
            if not data:
                return
            if source == pmi_fd:
                data = with_short_values(data)
            while data:
                data = data[os.write(target, data) :]


def with_short_values(answer: bytes) -> bytes:
    """Rewrite what the plugin says of the longest value; other answers stay as they are."""
    if not answer.startswith(b"cmd=maxes "):
        return answer
    return re.sub(
        rb"(?<= vallen_max=)\d+", lambda found: b"%d" % min(int(found[0]), VALUE_BYTES), answer, count=1
    )


if __name__ == "__main__":
    relay(int(sys.argv[1]), int(sys.argv[2]), 0)

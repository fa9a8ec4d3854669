"""The relay between a rank and Slurm's pmi2 plugin: one number changed, nothing left behind."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from keystone_mpi.transport.pmi_relay import short_requests, with_short_values

MAXES = b"cmd=maxes rc=0 kvsname_max=256 keylen_max=64 vallen_max=1024\n"


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        (MAXES, MAXES.replace(b"1024", b"512")),
        (MAXES.replace(b"1024", b"256"), MAXES.replace(b"1024", b"256")),
        (b"cmd=get_result rc=0 value= vallen_max=1024\n", b"cmd=get_result rc=0 value= vallen_max=1024\n"),
    ],
)
def test_only_the_longest_value_is_changed(answer: bytes, passed: bytes) -> None:
    assert with_short_values(answer) == passed


def test_relayed_during_init_and_direct_afterwards() -> None:
    plugin, pmi = socket.socketpair()
    environ = {"PMI_FD": str(pmi.fileno())}

    def answer() -> None:
        while request := plugin.recv(4096):
            plugin.sendall(MAXES if request == b"cmd=get_maxes\n" else b"echo " + request)

    threading.Thread(target=answer, daemon=True).start()

    def ask(fd: int, request: bytes) -> bytes:
        os.write(fd, request)
        return os.read(fd, 4096)

    with plugin, pmi:
        with short_requests(environ):
            fd = int(environ["PMI_FD"])
            assert fd != pmi.fileno()
            assert ask(fd, b"cmd=get_maxes\n") == MAXES.replace(b"1024", b"512")
            assert ask(fd, b"x" * 900) == b"echo " + b"x" * 900
        assert environ == {"PMI_FD": str(pmi.fileno())}
        # The same descriptor, without anybody in between.
        assert ask(fd, b"cmd=get_maxes\n") == MAXES
        os.close(fd)
        plugin.shutdown(socket.SHUT_RDWR)

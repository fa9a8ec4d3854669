"""Large buffers that travel behind their message, uncopied where threads share memory."""

from __future__ import annotations

import threading

import pytest

from keystone_mpi.transport.channel import Delivered, encode, split_parts, with_parts
from keystone_mpi.transport.local import LocalMaster
from keystone_mpi.transport.messages import Call, CallReplies, CallsGiven, CallsRecalled


@pytest.mark.parametrize("sizes", [[1], [0, 1 << 40], list(range(300))])
def test_parts_are_announced(sizes: list[int]) -> None:
    data = encode(CallsRecalled(3))
    assert split_parts(with_parts(data, sizes)) == (data, sizes)
    assert split_parts(data) == (data, [])


def test_local_parts_are_the_same_objects() -> None:
    master = LocalMaster()
    end = master.hub.connect(0)
    big, other = bytearray(100_000), memoryview(b"abc")
    given = CallsGiven(1, [Call(7, 0, b"", 2)])
    master.send(0, given, [big, other])
    master.send(0, CallsRecalled(1))
    first, second = end.receive(5.0)
    assert isinstance(first, Delivered)
    assert first.message == given
    assert first.parts[0] is big
    assert first.parts[1] is other
    assert second == CallsRecalled(1)
    threading.Thread(target=end.send, args=(CallReplies(1, [b"x"]), [big])).start()
    (received,) = master.receive(5.0)
    assert received.message == CallReplies(1, [b"x"])
    assert received.parts[0] is big
    end.close()
    master.close()

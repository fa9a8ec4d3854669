"""The local transport keeps the promises of every transport."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from transport_conformance import TransportConformance, collect, serve_echo

from keystone_mpi.transport.local import LocalMaster
from keystone_mpi.transport.messages import Farewell


class TestLocalTransport(TransportConformance):
    @pytest.fixture
    def master(self) -> Iterator[LocalMaster]:
        master = LocalMaster()
        threads = [
            threading.Thread(target=serve_echo, args=(master.hub.connect(worker),)) for worker in range(2)
        ]
        for thread in threads:
            thread.start()
        yield master
        workers = master.workers
        for worker in workers:
            master.send(worker, Farewell())
        collect(master, len(workers))
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        master.close()

    def test_a_watched_descriptor_ends_a_workers_wait(self) -> None:
        master = LocalMaster()
        end = master.hub.connect(0)
        reader, writer = os.pipe()
        end.watch(reader)
        os.write(writer, b"x")
        assert end.receive(30.0) == []
        end.unwatch(reader)
        os.close(reader)
        os.close(writer)
        end.close()
        master.close()

    def test_a_message_to_a_worker_that_left_is_dropped(self) -> None:
        master = LocalMaster()
        master.hub.connect(3).close()
        master.send(3, Farewell())
        assert list(master.workers) == []
        master.close()

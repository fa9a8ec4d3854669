"""Run under mpiexec by test_mpi_transport.py: rank 0 runs the suite, the others echo.

Usage: mpiexec -n 3 python mpi_transport_program.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from transport_conformance import TransportConformance, collect, serve_echo

from keystone_mpi.execution.environment import launcher_environment
from keystone_mpi.transport.messages import Farewell
from keystone_mpi.transport.mpi import MpiMaster, MpiWorkerEnd
from keystone_mpi.transport.world import MpiWorld

WORLD: MpiWorld | None = None


@pytest.fixture(scope="module")
def shared_master() -> Iterator[MpiMaster]:
    assert WORLD is not None
    master = MpiMaster(WORLD)
    yield master
    for worker in master.workers:
        master.send(worker, Farewell())
    collect(master, len(master.workers))
    master.close()


class TestMpiTransport(TransportConformance):
    @pytest.fixture
    def master(self, shared_master: MpiMaster) -> MpiMaster:
        return shared_master

    def test_every_rank_but_the_master_is_a_worker(self, master: MpiMaster) -> None:
        assert WORLD is not None
        assert list(master.workers) == list(range(1, WORLD.size))


def main() -> int:
    import mpi_transport_program as this  # the module that pytest will import, not __main__

    promised = launcher_environment()
    this.WORLD = MpiWorld(promised.size, promised.local_size)
    place = this.WORLD.node_place()
    assert place.workers == this.WORLD.size - 1, place
    assert promised.local_size == this.WORLD.size
    assert this.WORLD._asked_place() == place
    code = 0
    if this.WORLD.rank == 0:
        code = int(pytest.main(["-q", "-p", "no:cacheprovider", "--noconftest", "-c", "/dev/null", __file__]))
    else:
        serve_echo(MpiWorkerEnd(this.WORLD))
    this.WORLD.finalize()
    return code


if __name__ == "__main__":
    sys.exit(main())

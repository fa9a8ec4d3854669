"""The worker's bookkeeping: cores are never given twice, and all come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystone_mpi.core.errors import InternalError
from keystone_mpi.core.model import AttemptKey
from keystone_mpi.engine.slot_pool import QUEUE_AHEAD_S, SlotPool
from keystone_mpi.transport.messages import TaskOrder


def order(index: int, cores: int = 1) -> TaskOrder:
    return TaskOrder(index=index, attempt=1, params={}, cores=cores)


def key(index: int) -> AttemptKey:
    return AttemptKey(index, 1)


def test_orders_are_placed_in_order_on_different_cores() -> None:
    pool = SlotPool(2, (4, 6))
    pool.backlog.extend([order(0), order(1), order(2)])
    placed = pool.place()
    assert [item.order.index for item in placed] == [0, 1]
    assert sorted(cpu for item in placed for cpu in item.cpus) == [4, 6]
    assert pool.place() == []


def test_a_wide_order_waits_for_its_cores_and_is_not_overtaken() -> None:
    pool = SlotPool(4, (0, 1, 2, 3))
    pool.backlog.extend([order(0), order(1, cores=4), order(2)])
    assert [item.order.index for item in pool.place()] == [0]
    pool.finish(0, key(0), 1.0)
    (wide,) = pool.place()
    assert wide.cpus == (0, 1, 2, 3)
    assert pool.place() == []


def test_short_orders_queue_behind_each_other_and_long_ones_do_not() -> None:
    pool = SlotPool(1, (0,))
    pool.backlog.extend([order(index) for index in range(10)])
    assert len(pool.place()) == 1, "nothing is known yet"
    pool.finish(0, key(0), QUEUE_AHEAD_S / 4)
    assert len(pool.place()) > 1
    long_pool = SlotPool(1, (0,))
    long_pool.backlog.extend([order(index) for index in range(10)])
    long_pool.place()
    long_pool.finish(0, key(0), 10.0)
    assert len(long_pool.place()) == 1


def test_without_enough_cpus_nothing_is_pinned() -> None:
    pool = SlotPool(3, (0,))
    pool.backlog.extend([order(index) for index in range(3)])
    assert [item.cpus for item in pool.place()] == [(), (), ()]


def test_a_foreign_report_is_an_internal_error() -> None:
    with pytest.raises(InternalError, match="was not given"):
        SlotPool(1, ()).finish(0, key(5), 1.0)


@given(st.data())
def test_cores_are_conserved(data: st.DataObject) -> None:
    slots = data.draw(st.integers(1, 6))
    pool = SlotPool(slots, tuple(range(10, 10 + slots)))
    held: dict[int, tuple[int, tuple[int, ...]]] = {}
    given_back: list[int] = []
    added = 0
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["add", "finish", "put back", "withdraw"])):
            case "add":
                pool.backlog.append(order(added, cores=data.draw(st.integers(1, slots))))
                added += 1
            case "finish" if held:
                index = data.draw(st.sampled_from(sorted(held)))
                pool.finish(held.pop(index)[0], key(index), data.draw(st.sampled_from([0.001, 1.0])))
            case "put back" if held:
                index = data.draw(st.sampled_from(sorted(held)))
                pool.put_back(held.pop(index)[0], key(index))
            case "withdraw" if pool.backlog:
                index = pool.backlog[-1].index
                given_back += [item.index for item in pool.withdraw({key(index)})]
            case _:
                pass
        for placement in pool.place():
            held[placement.order.index] = (placement.slot, placement.cpus)
        by_slot: dict[int, set[int]] = {}
        for slot, cpus in held.values():
            by_slot.setdefault(slot, set()).update(cpus)
        used = [cpu for cpus in by_slot.values() for cpu in cpus]
        assert len(used) == len(set(used)), "one core in two slot processes"
        assert pool.held == len(held)
        assert pool.slot_to_relieve() is None or len(pool.backlog) == 0
    for index in sorted(held):
        pool.finish(held[index][0], key(index), 1.0)
    pool.backlog.clear()
    pool.backlog.append(order(10**6, cores=slots))
    (last,) = pool.place()
    assert last.cpus == tuple(range(10, 10 + slots)), "a core was lost"

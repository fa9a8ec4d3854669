"""One slot as its rank sees it.

Rule: an order is here from its submission until it has come back, whoever is killed.

    submitted --> orders --> reported | returned | lost with its slot process
"""

from __future__ import annotations

from keystone_mpi.execution.slot_messages import FrameChannel, SlotEnded, SlotOrder


class SlotState:
    """One slot as the rank sees it; `generation` names its present slot process."""

    __slots__ = ("channel", "ended", "generation", "never_sent", "orders", "stopped", "trouble")

    def __init__(self, channel: FrameChannel, generation: int) -> None:
        self.channel = channel
        self.generation = generation
        self.orders: dict[tuple[int, int], SlotOrder] = {}
        """Submitted and not yet come back, oldest first."""
        self.never_sent: set[tuple[int, int]] = set()
        """Those among them that came when the slot process was known to be dead."""
        self.stopped = False
        """It said goodbye."""
        self.ended: SlotEnded | None = None
        self.trouble = ""

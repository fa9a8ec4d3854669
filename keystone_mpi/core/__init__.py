"""core decides: the scheduler as a pure state machine."""

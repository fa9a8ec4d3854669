"""bench measures: how fast the runner is on this machine, beside what else could do the work."""

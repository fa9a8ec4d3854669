"""execution runs: the launcher, its slot processes, one solver process."""

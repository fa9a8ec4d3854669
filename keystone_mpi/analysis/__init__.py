"""analysis explains: open a results file, ask it, draw it, compare it.

Rule: reads only; the file under analysis is never changed, and a run that is
going on is not disturbed. pandas, xarray and matplotlib are loaded by the
functions that need them.
"""

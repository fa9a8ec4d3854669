"""sweeps describes: the sweep file and the parameter space."""

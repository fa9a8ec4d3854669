"""records remembers: the journal and the HDF5 store."""

"""engine assembles: one run out of all the parts."""

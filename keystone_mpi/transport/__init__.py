"""transport carries: messages between master and workers."""

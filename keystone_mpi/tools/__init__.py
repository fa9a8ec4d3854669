"""tools know solvers: parameters to argv and files, outputs to result values."""

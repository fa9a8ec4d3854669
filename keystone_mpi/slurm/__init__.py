"""slurm submits: job scripts as pure text, submission, arrays, walltime, what the allocation is."""

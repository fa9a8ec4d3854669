#!/bin/bash
# A sweep that is longer than the longest job: the job stops in time, goes back into the queue and continues,
# until all is done or a round brings nothing.
#
#   cd jobscripts/demo && sbatch ../slurm-requeue.sh poisson.toml poisson.h5
#
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=keystone.%j.log
set -u
sweep=${1:-poisson.toml}
results=${2:-poisson.h5}
mpi=${SRUN_MPI:-pmi2}                  # pmi2: MPICH.  pmix: Open MPI 5

ended() {   # how many tasks have ended so far
    keystone-mpi status --json "$results" 2>/dev/null |
        awk -F'[:,]' '/^  "(completed|failed)"/ { n += $2 } END { print n + 0 }'
}

before=$(ended)
srun --mpi="$mpi" --kill-on-bad-exit=1 --cpu-bind=none keystone-mpi run "$sweep" --output "$results"
code=$?
if [ "$code" -eq 75 ] && [ "$(ended)" -gt "$before" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

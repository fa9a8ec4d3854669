#!/bin/bash
# A job array: every element runs a share of the sweep into a file of its own (poisson.shard-2-of-4.h5).
# Small jobs start sooner than one large one. Afterwards: slurm-merge.sh.
#
#   cd jobscripts/demo
#   array=$(sbatch --parsable ../slurm-array.sh poisson.toml)
#   sbatch --dependency=afterany:$array ../slurm-merge.sh poisson.toml
#
#SBATCH --array=1-4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=keystone.%A_%a.log
set -u
sweep=${1:-poisson.toml}
mpi=${SRUN_MPI:-pmi2}                  # pmi2: MPICH.  pmix: Open MPI 5

srun --mpi="$mpi" --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --cpu-bind=none \
    keystone-mpi run "$sweep" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"

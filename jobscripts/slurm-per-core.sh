#!/bin/bash
# One allocation, one rank per core. For clusters that give out cores, not nodes; at most a few hundred ranks.
#
#   cd jobscripts/demo && sbatch ../slurm-per-core.sh poisson.toml
#
#SBATCH --ntasks=8
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=keystone.%j.log
set -u
sweep=${1:-poisson.toml}
mpi=${SRUN_MPI:-pmi2}                  # pmi2: MPICH.  pmix: Open MPI 5

srun --mpi="$mpi" --kill-on-bad-exit=1 keystone-mpi run "$sweep"

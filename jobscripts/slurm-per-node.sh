#!/bin/bash
# One allocation, one rank per node. A rank's slots are its node's cores; rank 0's node works too. The usual choice.
#
#   cd jobscripts/demo && sbatch ../slurm-per-node.sh poisson.toml
#
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@120              # the warning: what runs is finished, nothing more is started
#SBATCH --output=keystone.%j.log
set -u
sweep=${1:-poisson.toml}
mpi=${SRUN_MPI:-pmi2}                  # pmi2: MPICH.  pmix: Open MPI 5.  `srun --mpi=list` shows what there is

srun --mpi="$mpi" --kill-on-bad-exit=1 --cpu-bind=none keystone-mpi run "$sweep"

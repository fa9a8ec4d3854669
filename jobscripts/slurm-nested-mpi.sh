#!/bin/bash
# Solvers that are MPI programs themselves: every task calls mpiexec on the cores that it was given.
# nested.toml has `cores = "{ranks}"` and `mpiexec -n {cores}`; a task's mpiexec sees nothing of the outer MPI.
#
#   cd jobscripts && sbatch slurm-nested-mpi.sh nested.toml
#
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=keystone.%j.log
set -u
sweep=${1:-nested.toml}
mpi=${SRUN_MPI:-pmi2}                  # pmi2: MPICH.  pmix: Open MPI 5

srun --mpi="$mpi" --kill-on-bad-exit=1 --cpu-bind=none keystone-mpi run "$sweep"

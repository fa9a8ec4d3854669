#!/bin/bash
# After an array: its elements' files become one. May be run at any time and again; exit code 75 says that
# something is missing yet, and the log says what.
#
#   sbatch --dependency=afterany:JOBID ../slurm-merge.sh poisson.toml
#
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --output=keystone-merge.%j.log
set -u
sweep=${1:-poisson.toml}

keystone-mpi merge "$sweep"

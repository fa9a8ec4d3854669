#!/bin/bash
# One machine, no queue: rank 0 deals, the other ranks run the tasks on all its cores.
#
#   cd jobscripts/demo && ../local.sh poisson.toml        results in poisson.h5; run it again to continue
set -u
sweep=${1:-poisson.toml}

mpiexec -n 2 keystone-mpi run "$sweep"

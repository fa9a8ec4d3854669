#!/bin/bash
# PBS: one allocation, one rank per node, whose slots are the node's cores.
# Not run by this project's tests, which have no PBS: check select= and the launcher against your site's manual.
#
#   cd jobscripts/demo && qsub ../pbs-per-node.sh
#
#PBS -l select=2:ncpus=32:mpiprocs=1
#PBS -l place=scatter:excl
#PBS -l walltime=01:00:00
#PBS -j oe
set -u
cd "$PBS_O_WORKDIR" || exit 2
sweep=${SWEEP:-poisson.toml}           # qsub -v SWEEP=other.toml
nodes=$(sort -u "$PBS_NODEFILE" | wc -l)

# PBS does not tell a job its end: --walltime does, a little less than above.
mpiexec -n "$nodes" -ppn 1 keystone-mpi run "$sweep" --walltime 59min

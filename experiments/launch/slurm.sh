#!/bin/bash
# One run on two nodes: sbatch experiments/launch/slurm.sh mnist/edm
# SLURM starts one task for each GPU, and JAX finds the others by the variables of SLURM. --requeue and --resume: a job that is
# preempted begins again where it was. SIGTERM comes two minutes before the limit, and every task ends with a checkpoint.
#SBATCH --job-name=scorelab
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

config=${1:?expected the name of a config}
# A folder that all nodes see.
workdir=${WORKDIR:-$PWD/runs/$config}
mkdir -p "$(dirname "$workdir")"
srun --kill-on-bad-exit=1 scorelab run "$config" --workdir "$workdir" --resume --distributed

#!/usr/bin/env bash
# A run of stedm on a SLURM cluster: one `torchrun` a node, one process a GPU.
#
#   sbatch --nodes 2 --gpus-per-node 4 examples/slurm.sh my_cohort.yaml runs/my
#
# When the time is up, submit the same line again, with as many nodes as you like: it continues.
#SBATCH --job-name=stedm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=stedm-%j.log
set -euo pipefail

config=${1:?usage: sbatch examples/slurm.sh CONFIG RUN}
out=${2:?usage: sbatch examples/slurm.sh CONFIG RUN}
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Processes of a node share its cores; one thread each leaves the rest to reading and writing.
export OMP_NUM_THREADS=1

# --kill-on-bad-exit: a node that fails must not leave the others waiting.
srun --kill-on-bad-exit=1 .venv/bin/torchrun \
  --nnodes="$SLURM_JOB_NUM_NODES" \
  --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-id="$SLURM_JOB_ID" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$head_node:29500" \
  -m stedm.cli run --config "$config" --out "$out"

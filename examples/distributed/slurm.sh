#!/usr/bin/env bash
# Trains one model on all nodes of a Slurm job, and goes on from the newest checkpoint if the job is started again:
#
#     sbatch --nodes 4 slurm.sh /shared/runs/base --data /shared/corpus.txt --size 1B
#
# The first argument is the run's directory, which all nodes share; the others are those of `llm train`.
#SBATCH --job-name=llm-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
# Two minutes before the time is over, every process gets SIGTERM, saves a checkpoint and ends.
#SBATCH --signal=TERM@120
set -euo pipefail

run=${1:?usage: sbatch slurm.sh RUN [ARGUMENTS OF llm train]...}
shift
if [ -e "$run/run.json" ]; then
    arguments=(--resume "$run")
else
    arguments=(--out "$run" "$@")
fi
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${PROCESSES_PER_NODE:-8}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first_node:${RENDEZVOUS_PORT:-29500}" \
    -m llm train "${arguments[@]}"

#!/usr/bin/env bash
# Trains on several GPUs of several machines of a SLURM; all machines have to see the output folder.
#   sbatch --nodes=2 --gpus-per-node=4 examples/train_slurm.sh general Trained --set data.structures=FOLDER ...
# The words after the name of the job are those of `cryohush train`: a preset or a YAML file, the folder of the
# output, and whatever is to be set. `optimisation.batch_size` is that of each GPU. Where cryohush is not on the
# PATH, activate its environment first. A job that ended early goes on by the same line.
#SBATCH --job-name=cryohush-train
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# two minutes before the time is up: enough to write down how far the training is
#SBATCH --signal=TERM@120
set -euo pipefail
config=${1:?a preset or a YAML file}
output=${2:?the folder of the output}
shift 2

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
cpus=${SLURM_CPUS_PER_TASK:-1}
processes=${SLURM_GPUS_ON_NODE:-1}
export OMP_NUM_THREADS=$((cpus > processes ? cpus / processes : 1))

# One torchrun for each machine, which starts a process for each of its GPUs. Jobs on one machine need ports of
# their own.
srun --cpus-per-task="$cpus" torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$processes" \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 20000))" \
    --no-python cryohush train "$config" --output "$output" --resume \
    --set optimisation.nodes="$SLURM_JOB_NUM_NODES" "$@"

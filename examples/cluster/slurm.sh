#!/usr/bin/env bash
#SBATCH --job-name=hindsight
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@150
# A Ray cluster on the job's nodes and one run on it, which continues after a requeue:
#   sbatch examples/cluster/slurm.sh alfworld_7b_gpu method=serl out=/shared/runs/serl
# Submit it from a clone whose disk all nodes share, with its .venv made by `make setup` on a GPU node.
set -euo pipefail
source .venv/bin/activate
export RAY_AUTH_MODE=token HINDSIGHT_CACHE="${HINDSIGHT_CACHE:-$PWD/.cache/hindsight}"
[ -s ~/.ray/auth_token ] || ray get-auth-token --generate >/dev/null

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address | awk '{print $1}'):6379
srun --nodes=1 --ntasks=1 -w "${nodes[0]}" ray start --head --port=6379 --block &
until ray status --address "$address" >/dev/null 2>&1; do sleep 2; done
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 -w "$node" ray start --address "$address" --block &
done
until [ "$(ray list nodes --address "$address" --filter state=ALIVE | grep -c ALIVE)" -ge "${#nodes[@]}" ]; do sleep 2; done

hindsight train "$@" resume=auto --address "$address" &
run=$!
trap 'kill -TERM "$run"' TERM # before the time limit: the run saves and ends
wait "$run" || wait "$run"    # a signal ends the first

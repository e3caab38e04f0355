#!/usr/bin/env bash
# Training that torchrun starts again, from the last checkpoint, after a process or a machine has died. Run the same line
# on each machine:
#
#   NNODES=2 NPROC=8 RDZV=FIRST_NODE:29500 bash scripts/train_elastic.sh --config configs/ddf_resnet50.yaml data.root=...
#
# NNODES        machines (default 1); NNODES=1:2 also continues with one, if the batch divides among its processes
# NPROC         processes on each (default 1)
# RDZV          address and free port of one of them (default: this machine alone)
# MAX_RESTARTS  default 20
set -euo pipefail

# Each restart has a store of its own: in one that lives on, processes meet the keys of those that have ended, and wait
# for them.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

root="$(cd "$(dirname "$0")/.." && pwd)"
python "$root/train.py" --print-config "$@" > /dev/null  # a mistake in the settings would only be made again

exec python -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --nproc-per-node "${NPROC:-1}" --max-restarts "${MAX_RESTARTS:-20}" \
    --rdzv-backend c10d --rdzv-endpoint "${RDZV:-localhost:0}" --rdzv-id "${RDZV_ID:-ddfnet}" \
    "$root/train.py" "$@"

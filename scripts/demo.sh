#!/usr/bin/env bash
# The whole thing on a fresh machine, without a GPU: environment, real handwritten digits, training on two processes,
# evaluation of the best checkpoint, curves. Started again, it resumes, or says that it is finished.
set -euo pipefail
source "$(dirname "$0")/environment.sh"

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # two processes share the cores
run=runs/demo

python scripts/make_data.py digits data/digits
torchrun --standalone --nproc-per-node 2 train.py --config configs/demo.yaml "$@"
python eval.py --checkpoint $run/best.pt
python scripts/visualize curves $run

echo
echo "curves: $run/curves.png    logs: tensorboard --logdir $run/tensorboard"

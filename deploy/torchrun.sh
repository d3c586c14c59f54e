#!/usr/bin/env bash
# One run on all GPUs (or, without GPUs, as many processes as PROCESSES says) of one or several machines:
#
#   deploy/torchrun.sh gpt2-124m --data DATA --out OUT
#   NODES=4 HEAD=node-0 deploy/torchrun.sh gpt2-124m --data DATA --out OUT      # the same line on each of the machines
#
# DATA and OUT are the same folders on every machine. --resume is always given: a run that does not exist yet begins, and
# one that was stopped goes on, also when torchrun starts it again after a machine was lost (RESTARTS).
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: [NODES=N HEAD=HOST] [PORT=29400] [PROCESSES=gpu] [RESTARTS=0] $0 RECIPE --data DIR --out DIR ..." >&2
    exit 2
fi
nodes=${NODES:-1}
if [ "$nodes" -gt 1 ] && [ -z "${HEAD:-}" ]; then
    echo "$0: NODES is $nodes; set HEAD to the host name of one of them" >&2
    exit 2
fi
if [ "$nodes" -eq 1 ]; then
    meet=(--standalone)
else
    meet=(--rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29400}" --rdzv-id "${RUN_ID:-langwright}")
fi
# After a SIGTERM or Ctrl-C every process finishes its step and saves; --shutdown-timeout is how long torchrun waits for it.
exec torchrun --nnodes "$nodes" --nproc-per-node "${PROCESSES:-gpu}" "${meet[@]}" --max-restarts "${RESTARTS:-0}" \
    --shutdown-timeout "${GRACE_SECONDS:-300}" -m langwright.cli.main train "$@" --resume

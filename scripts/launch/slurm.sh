#!/usr/bin/env bash
# Trains on the nodes of a SLURM job: a batch script. Submit it in the repository's root, with a workdir that all nodes see:
#
#     sbatch --nodes=4 --gpus-per-node=8 scripts/launch/slurm.sh --config=configs/openwebtext.py --workdir=/shared/runs/owt
#     sbatch --nodes=4 --ntasks-per-node=8 --gres=gpu:8 scripts/launch/slurm.sh --config=...    # a process for each GPU
#     scripts/launch/slurm.sh --dry-run --config=...    # prints the srun that the job would run
#
# One task a node drives all of its GPUs (the default below); with --ntasks-per-node=8 each drives one. The processes find
# each other by SLURM's variables. All options but --help and --dry-run go to scripts/train.py; options of sbatch come
# before this script's name: --partition, --time, --account, --output, ...
#
# 5 minutes before the time limit, and when the job is preempted (if the partition's GraceTime is as long as a step and a
# save), the processes get SIGTERM, save at the same step and end with 143; SIGUSR1 (138) does the same. The job then goes
# back to the queue and goes on from there, MAX_RESTARTS (100) times at most; so it does when a node or a process dies, or
# stands still (75, 134, 137). Bad input (2) and other errors end it. To save and stop for good: scontrol update JobId=JOB Requeue=0 && scancel --signal=TERM JOB
# PYTHON chooses the interpreter, .venv/bin/python by default, the same on all nodes.
#SBATCH --job-name=gpt2_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail

usage() { sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$0"; }

dry_run=''
case ${1:-} in
-h | --help) usage && exit 0 ;;
--dry-run) dry_run=yes && shift ;;
esac
[ $# -gt 0 ] || {
    echo "error: no options for scripts/train.py; see $0 --help" >&2
    exit 2
}

# Where a process failed, the others end by themselves, with the code that says why: killed at once, they could not.
command=(srun --kill-on-bad-exit=0 --wait=60 --label)
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || command+=("--cpus-per-task=$SLURM_CPUS_PER_TASK") # srun does not inherit it
command+=("${PYTHON:-.venv/bin/python}" scripts/train.py "$@")
if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    echo
    exit 0
fi
[ -n "${SLURM_JOB_ID:-}" ] || {
    echo "error: this is no SLURM job; submit it: sbatch --nodes=N $0 ..., or see $0 --help" >&2
    exit 2
}

cd "${SLURM_SUBMIT_DIR:-.}" # SLURM runs a copy of this file elsewhere
status=0
"${command[@]}" || status=$?
if [ "$status" -ne 75 ] && { [ "$status" -le 128 ] || [ "$status" -eq 130 ]; }; then
    exit "$status" # done, bad input, another error, or ctrl-C
fi
if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-100}" ]; then
    echo "error: ended with $status after $SLURM_RESTART_COUNT restarts; no more (MAX_RESTARTS)" >&2
    exit "$status"
fi
echo "ended with $status; job $SLURM_JOB_ID goes back to the queue"
scontrol requeue "$SLURM_JOB_ID" || exit "$status" # it may not be requeued

#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs of any size, by gcloud (https://cloud.google.com/sdk), from any machine.
#
#     export TPU_NAME=my-tpu TPU_TYPE=v5litepod-16 TPU_ZONE=us-west4-a      # all commands need them
#     scripts/launch/tpu_vm.sh run -- --config=configs/openwebtext.py --workdir=/mnt/runs/owt    # all of the following:
#
#     scripts/launch/tpu_vm.sh create           # queues the request and waits until the slice is there
#     scripts/launch/tpu_vm.sh copy             # the committed files of this repository, to all workers
#     scripts/launch/tpu_vm.sh setup            # an environment with JAX for TPU on all workers; SETUP, too
#     scripts/launch/tpu_vm.sh train -- --config=configs/openwebtext.py --workdir=/mnt/runs/owt
#     scripts/launch/tpu_vm.sh status           # of the request
#     scripts/launch/tpu_vm.sh stop             # SIGTERM to all workers: they save at the same step and end
#     scripts/launch/tpu_vm.sh delete           # gives the slice back
#
# `scripts/launch/tpu_vm.sh --dry-run COMMAND ...` prints the gcloud commands and runs none of them. One process runs on
# each worker, and the processes find each other by the TPU's metadata; the workdir must be a folder that all workers see.
#
#   TPU_NAME, TPU_TYPE, TPU_ZONE    the request, its accelerator type and zone; the project is gcloud's, or TPU_PROJECT
#   TPU_VERSION                     the VM's image: v2-alpha-tpuv5-lite, v2-alpha-tpuv6e, or tpu-ubuntu2204-base (default)
#   TPU_OPTIONS                     further options of the request, such as --spot or --reserved
#   SETUP                           a command for each worker at setup, such as mounting the workdir's file system
#   MAX_RESTARTS                    of `run`, 100 by default
#
# `run` starts again, with a new slice if this one is gone, after a preemption (saved, exit code 143), a killed, lost (75)
# or unreachable worker. It does not after success, bad input (2) or another error while the slice is there. It leaves the
# slice running: delete it.
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"; }
refuse() {
    echo "error: $1; see $0 --help" >&2
    exit 2
}

dry_run=''
[ "${1:-}" != --dry-run ] || { dry_run=yes && shift; }
action=${1:-}
case $action in
-h | --help) usage && exit 0 ;;
create | copy | setup | status | stop | delete) [ $# -eq 1 ] || refuse "$action takes no options, and got $2" ;;
train | run)
    [ "${2:-}" = -- ] && [ $# -gt 2 ] || refuse "$action needs -- and the options of scripts/train.py after it"
    shift 2
    ;;
*) refuse "'$action' is no command; there are create, copy, setup, train, run, status, stop and delete" ;;
esac
for name in TPU_NAME TPU_TYPE TPU_ZONE; do
    [ -n "${!name:-}" ] || refuse "$name is not set"
done
cd "$(dirname "$0")/../.."

where=("--zone=$TPU_ZONE")
[ -z "${TPU_PROJECT:-}" ] || where+=("--project=$TPU_PROJECT")
read -ra further <<<"${TPU_OPTIONS:-}"
queued=(gcloud compute tpus queued-resources)
folder=gpt2_jax # in the home folder of each worker

call() { # COMMAND...: runs it, or prints it, so that it can be pasted
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}
on_all_workers() { call gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all --command="$1"; }
state() { "${queued[@]}" describe "$TPU_NAME" "${where[@]}" --format='value(state.state)'; }
exists() { [ -n "$("${queued[@]}" list "${where[@]}" --filter="name~/$TPU_NAME\$" --format='value(name)')" ]; }

create() {
    call "${queued[@]}" create "$TPU_NAME" --node-id="$TPU_NAME" "${where[@]}" --accelerator-type="$TPU_TYPE" \
        --runtime-version="${TPU_VERSION:-tpu-ubuntu2204-base}" ${further[@]+"${further[@]}"}
    await
}
await() { # until the slice is there
    local now
    while [ -z "$dry_run" ]; do
        now=$(state)
        case $now in
        ACTIVE) return ;;
        FAILED | SUSPENDING | SUSPENDED | DELETING)
            echo "error: the request $TPU_NAME is $now; $0 status says why, $0 delete removes it" >&2
            return 1
            ;;
        esac
        echo "$TPU_NAME is $now"
        sleep "${POLL:-30}"
    done
    call "${queued[@]}" describe "$TPU_NAME" "${where[@]}" --format='value(state.state)' # again until it says ACTIVE
}
copy() {
    local archive=${TMPDIR:-/tmp}/gpt2_jax-$TPU_NAME.tar.gz
    call git archive --format=tar.gz --output="$archive" HEAD
    call gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:$folder.tar.gz" "${where[@]}" --worker=all
    on_all_workers "mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder"
}
setup() {
    local uv="\$HOME/.local/bin/uv"
    on_all_workers "set -e; ${SETUP:+$SETUP; }cd $folder; python3 -m pip install --user --quiet uv; $uv venv --python 3.12 \
--allow-existing .venv; $uv pip install --quiet --python .venv/bin/python --editable '.[train,tpu]'"
}
train() {
    local options
    printf -v options ' %q' "$@"
    on_all_workers "cd $folder && echo \$\$ >train.pid && exec .venv/bin/python scripts/train.py$options"
}
delete() { call "${queued[@]}" delete "$TPU_NAME" "${where[@]}" --force --quiet; }

ready() { # a slice with this code on it: what is there, or a new one
    if [ -z "$dry_run" ] && exists; then
        case $(state) in
        FAILED | SUSPENDING | SUSPENDED | DELETING) delete && create ;;
        *) await ;;
        esac
    else
        create
    fi
    copy
    setup
}
run() {
    local restarts=0 status
    while true; do
        ready
        status=0
        train "$@" || status=$?
        [ -z "$dry_run" ] || return 0
        if [ "$status" -eq 0 ] || [ "$status" -eq 2 ] || [ "$status" -eq 130 ]; then
            return "$status"
        fi
        # What else gcloud returns may be of the workers' or its own: the request tells whether the slice is gone.
        if [ "$status" -ne 75 ] && [ "$status" -le 128 ] && exists && [ "$(state)" = ACTIVE ]; then
            return "$status"
        fi
        restarts=$((restarts + 1))
        if [ "$restarts" -gt "${MAX_RESTARTS:-100}" ]; then
            echo "error: ended with $status after ${MAX_RESTARTS:-100} restarts; no more (MAX_RESTARTS)" >&2
            return "$status"
        fi
        echo "ended with $status; restart $restarts"
    done
}

case $action in
train) train "$@" ;;
run) run "$@" ;;
status) call "${queued[@]}" describe "$TPU_NAME" "${where[@]}" ;;
stop) on_all_workers "kill -TERM \$(cat $folder/train.pid)" ;;
*) "$action" ;;
esac

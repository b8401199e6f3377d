#!/usr/bin/env bash
# Trains in several processes on this machine, as several machines would: to try that, or for a CPU of several sockets.
#
#     scripts/launch/local.sh [--one-gpu-each] [--port PORT] N -- TRAIN_OPTION...
#
#     scripts/launch/local.sh 2 -- --config=configs/quickstart.py --workdir=runs/two
#     scripts/launch/local.sh --one-gpu-each 8 -- --config=configs/openwebtext.py --workdir=runs/gpus
#
#   N                 processes; each runs `python scripts/train.py TRAIN_OPTION...` with the same options
#   --one-gpu-each    process i sees the i-th GPU alone; otherwise every process sees all devices
#   --port PORT       where process 0 waits for the others; a free one by default
#
# PYTHON chooses the interpreter, .venv/bin/python or python3 by default. Ctrl-C and SIGTERM go on to all processes, which
# save at the same step and end; the same command goes on from there. If one process fails, the others, which wait for
# it, end by themselves, or are ended after GRACE seconds (30).
#
# Where a process was lost or stood still (75), was killed (137) or crashed (134, 139), all are started again and go on from
# the last checkpoint, MAX_RESTARTS (3) times at most; not after bad input (2), another error (1) or a saved stop (130, 138,
# 143). The exit code is 2 where one of them found bad input, else that of the first that did not end well, else 0.
set -euo pipefail

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0"; }
refuse() {
    echo "error: $1; see $0 --help" >&2
    exit 2
}

one_gpu_each='' port=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --one-gpu-each) one_gpu_each=yes && shift ;;
    --port) port=${2:?error: --port needs a number} && shift 2 ;;
    *) break ;;
    esac
done
count=${1:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || refuse "the number of processes is '$count'; it must be 1 or more"
[ "${2:-}" = -- ] || refuse "-- must stand between the number of processes and the options of scripts/train.py"
shift 2

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
free_port='import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])'

start() {
    local i at
    at=${port:-$("$python" -c "$free_port")}
    pids=()
    for ((i = 0; i < count; i++)); do
        (
            export JAX_COORDINATOR_ADDRESS=localhost:$at JAX_NUM_PROCESSES=$count JAX_PROCESS_ID=$i
            [ -z "$one_gpu_each" ] || export CUDA_VISIBLE_DEVICES=$i
            exec "$python" "$root/scripts/train.py" "$@" </dev/null
        ) &
        pids+=($!)
    done
}
pass_on() { # SIGNAL: to all that still run
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do
        kill -s "$1" "$pid" 2>/dev/null || true # it has ended
    done
}
await() { # sets status when all have ended
    local deadline='' ended pid running left=("${pids[@]}")
    status=0
    while [ ${#left[@]} -gt 0 ]; do
        running=()
        for pid in "${left[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                running+=("$pid")
                continue
            fi
            ended=0
            wait "$pid" || ended=$?
            if [ "$ended" -ne 0 ]; then
                [ "$status" -ne 0 ] && [ "$ended" -ne 2 ] || status=$ended
                deadline=${deadline:-$((SECONDS + ${GRACE:-30}))}
            fi
        done
        left=(${running[@]+"${running[@]}"})
        if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
            pass_on KILL # one that is stopped, too
            deadline=$((SECONDS + 3600))
        fi
        sleep 0.1
    done
}

stopped=''
trap 'stopped=yes && pass_on INT' INT
trap 'stopped=yes && pass_on TERM' TERM
trap 'stopped=yes && pass_on USR1' USR1
set -m # each process in a group of its own: a ctrl-C reaches it once, from here, and is not ignored
for ((restart = 1; ; restart++)); do
    start "$@"
    await
    case $status in 75 | 134 | 137 | 139) ;; *) exit "$status" ;; esac
    [ -z "$stopped" ] || exit "$status"
    if [ "$restart" -gt "${MAX_RESTARTS:-3}" ]; then
        echo "error: ended with $status after ${MAX_RESTARTS:-3} restarts; no more (MAX_RESTARTS)" >&2
        exit "$status"
    fi
    echo "ended with $status; restart $restart"
done

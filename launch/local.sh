#!/usr/bin/env bash
# Several processes on one machine start the same training, or another command of jebm:
#   launch/local.sh PROCESSES CONFIG --workdir DIR [--set key.path=value ...]
#   launch/local.sh PROCESSES sample|evaluate|restore|report DIR ...
# When one of them dies the others are ended and the status is 75; the same command then resumes. A mistake in the command
# is status 2, a run that diverged 1. SIGTERM is passed on.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: $0 PROCESSES [COMMAND] CONFIG --workdir DIR [--set key.path=value ...]" >&2
    exit 2
fi
export JEBM_NUM_PROCESSES=$1
shift
case $1 in train | sample | evaluate | restore | report) ;; *) set -- train "$@" ;; esac
export JEBM_COORDINATOR=${JEBM_COORDINATOR:-127.0.0.1:12355}

workers=()
for ((i = 0; i < JEBM_NUM_PROCESSES; i++)); do
    JEBM_PROCESS_ID=$i "${JEBM_PYTHON:-python}" -m jebm "$@" &
    workers+=("$!")
done
stopping=0
trap 'stopping=1; kill -TERM "${workers[@]}" 2>/dev/null || true' TERM INT

while [[ -n $(jobs -p) ]]; do
    status=0
    wait -n || status=$?
    if ((status == 0 || status == 127)); then continue; fi
    if ((stopping && status > 128)); then continue; fi # the signal ended the waiting, not a worker
    kill -KILL "${workers[@]}" 2>/dev/null || true
    wait || true
    if ((status <= 2)); then exit "$status"; fi # that process has said why
    echo "$0: a process ended with status $status; the same command resumes" >&2
    exit 75
done

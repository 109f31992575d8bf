#!/usr/bin/env bash
# Every worker of a TPU pod slice starts the same training:
#   launch/tpu.sh NAME ZONE CONFIG --workdir /mnt/shared/runs/name [--set key.path=value ...]
# or another command of jebm on a run:
#   launch/tpu.sh NAME ZONE sample|evaluate|restore|report /mnt/shared/runs/name ...
# The last commit of the repository in this directory is copied to each worker and installed there once, with the versions
# that the tests have run with (Python 3.11 or newer is needed). DIR is a path that all workers have mounted (Filestore,
# NFS). CONFIG is a path inside the repository. The same command again, after a preemption, resumes. Ctrl-C, or a lost
# connection, ends what is shown, not the training (jebm/train.log on each worker has it); stop that with
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='pkill -TERM -f "jebm train"'
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: $0 NAME ZONE [COMMAND] CONFIG --workdir DIR [--set key.path=value ...]" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
case $1 in train | sample | evaluate | restore | report) ;; *) set -- train "$@" ;; esac
if [[ -n $(git status --porcelain) ]]; then
    echo "$0: warning: uncommitted changes are left out: commit what the run needs" >&2
fi
arguments=$(printf '%q ' "$@")
pinned=$(sed -n 's/^ARG PINNED="\(.*\)"$/\1/p' launch/Dockerfile)
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:/tmp/jebm.tar.gz" --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
set -eu
mkdir -p jebm
tar -xzf /tmp/jebm.tar.gz -C jebm
cd jebm
if ! test -x .venv/bin/python; then
    python=
    for each in \${JEBM_PYTHON:-} python3.13 python3.12 python3.11; do
        if command -v \$each >/dev/null; then python=\$each; break; fi
    done
    if test -z \"\$python\"; then
        echo 'Python 3.11 or newer is missing: sudo add-apt-repository -y ppa:deadsnakes/ppa; sudo apt-get install -y python3.11-venv' >&2
        exit 2
    fi
    \$python -m venv .venv
fi
.venv/bin/pip install --quiet -e '.[tpu]' $pinned
export JEBM_DISTRIBUTED=1
nohup .venv/bin/python -m jebm $arguments > $1.log 2>&1 < /dev/null &
tail -n +1 -f --pid=\$! $1.log
wait \$!
"

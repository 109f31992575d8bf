#!/usr/bin/env bash
# Every worker of a TPU pod slice starts the same training:
#   launch/tpu.sh NAME ZONE CONFIG --workdir /mnt/shared/runs/name [--set key.path=value ...]
# The repository in this directory is copied to each worker and installed there once (Python 3.11 or newer is needed).
# DIR is a path that all workers have mounted (Filestore, NFS). CONFIG is a path inside the repository. The same command
# again, after a preemption, resumes. Ctrl-C ends the connection, not the training: stop that with
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='pkill -TERM -f "jebm train"'
set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: $0 NAME ZONE CONFIG --workdir DIR [--set key.path=value ...]" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
arguments=$(printf '%q ' "$@")
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$name:/tmp/jebm.tar.gz" --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
set -eu
mkdir -p jebm
tar -xzf /tmp/jebm.tar.gz -C jebm
cd jebm
test -x .venv/bin/python || \${JEBM_PYTHON:-python3.11} -m venv .venv
.venv/bin/pip install --quiet -e '.[tpu]'
export JEBM_DISTRIBUTED=1
exec .venv/bin/python -m jebm train $arguments
"

#!/usr/bin/env bash
# One session on one accelerator, in stages that each leave what they have:
#
#   DATA=npz:data/cifar10.npz INCEPTION=data/inception_fid.npz OUT=results/gpu benchmarks/gpu_session.sh chains steps train score
#
# chains: Langevin chains beside torchebm and PyTorch. steps: training steps of the experiments at paper size.
# train: Denoising-EBM on CIFAR-10 for SECONDS_TO_TRAIN seconds; called again, it resumes. score: samples, FID, null models.
# --dry-run: every stage at tiny sizes on the bundled digits, in minutes on a CPU.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=.:${PYTHONPATH:-} PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
python=${PYTHON:-python3}
out=${OUT:-results/gpu} run=${RUN:-runs/gpu_denoising} config=configs/denoising_ebm/cifar10.py
data=${DATA:-npz:data/cifar10.npz}
chains=() steps=() score=(--num "${NUM:-50000}") train=()
if [[ ${1:-} == --dry-run ]]; then
  shift
  config=configs/digits/denoising_ebm.py data=digits INCEPTION=
  chains=(--tiny --repeats 2) score=(--num 40 --some 40 --batch 20)
  steps=(--repeats 1 --variants TF32 --experiments "$config" --set data.batch_size=8)
  train=(--set training.num_steps=4 --set training.log_every=2 --set training.sample_every=0)
fi
[[ -n ${INCEPTION:-} ]] && score+=(--weights "$INCEPTION")
for stage in "$@"; do
  case $stage in
    chains | steps | train | score) ;;
    *) echo "unknown stage '$stage': chains, steps, train, score" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
status=0
for stage in "$@"; do
  echo "== $stage"
  case $stage in
    chains) "$python" benchmarks/gpu/chains.py --out "$out/chains.json" "${chains[@]}" ;;
    steps) "$python" benchmarks/gpu/steps.py --data "$data" --out "$out/steps.json" "${steps[@]}" ;;
    train)
      # SIGTERM saves; the same command resumes
      timeout --signal TERM "${SECONDS_TO_TRAIN:-540}" "$python" -m jebm train "$config" --workdir "$run" \
        --set data.source="$data" --set training.evaluate_at_end=false "${train[@]}" ${TRAIN_SETTINGS:-}
      code=$?
      [[ $code == 0 || $code == 124 ]] || (exit "$code")
      ;;
    score) "$python" benchmarks/gpu/denoising.py "$run" --out "$out/denoising.json" "${score[@]}" ;;
  esac || { echo "stage $stage: status $?" >&2; status=1; }
done
exit $status

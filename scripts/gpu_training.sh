#!/usr/bin/env bash
# Trains the built-in model on one GPU: encoder and transformer, then the LoRA. The same command goes on where it stopped.
#
#   scripts/gpu_training.sh PAIRS START OUT [MINUTES]
#
# PAIRS    a folder with test_LR, test_HR and test_target, made at x4 (docs/training/target_pictures.md)
# START    RealESRGAN_x4plus.pth, or the .safetensors that scripts/real_esrgan_weights.py makes
# OUT      a folder for the runs and for base.safetensors and lora.safetensors
# MINUTES  for all of it, 8 by default: two thirds for the base, the rest for the LoRA. A run that is stopped has saved.
#
# PYTHON names the interpreter. The words of OVERRIDES are added to the settings of both runs, for example
# OVERRIDES="run.compile=false loss.perceptual_backbone='squeezenet1_1_features.safetensors'".
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 3 ] || { sed -n '2,12p' "$0"; exit 2; }
pairs=$(realpath "$1") start=$(realpath "$2") out=$3 minutes=${4:-8}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
read -ra overrides <<< "${OVERRIDES:-}"

# SIGTERM makes a run save and stop; its exit code is then 130, or 124 from `timeout`, and what it has is exported.
run_for() {
    local seconds=$1 code=0
    shift
    timeout --signal=TERM --kill-after=600 "$seconds" "$python" -m training "$@" || code=$?
    [ "$code" = 0 ] || [ "$code" = 124 ] || [ "$code" = 130 ] || exit "$code"
}

if [ ! -e "$out/base.safetensors" ]; then
    run_for $((minutes * 40)) pretrain pretrain/real_esrgan "data.pairs=['$pairs']" "model.encoder_start='$start'" \
        "run.output_dir='$out/pretrain'" "${overrides[@]}"
    "$python" -m training export "$out/pretrain" "$out/base.safetensors"
fi
if [ ! -e "$out/lora.safetensors" ]; then
    run_for $((minutes * 20)) distill distill/builtin "base.path='$out/base.safetensors'" "data.folders=[]" \
        "data.pairs=['$pairs']" "run.output_dir='$out/distill'" "${overrides[@]}"
    "$python" -m training export "$out/distill" "$out/lora.safetensors"
fi
"$python" -m teasr_core info "$out/base.safetensors"
"$python" -m teasr_core info "$out/lora.safetensors"

#!/usr/bin/env bash
# Train one model on prepared data; the same recipe for fairseq's own LSTM and for G2-LSTM.
#   bash examples/bitext/train.sh DATA_BIN SAVE_DIR ARCH [fairseq-train options; later ones win]
# Called again, it goes on from SAVE_DIR/checkpoint_last.pt, unless that is of a training with other options. It trains on one
# GPU; --distributed-world-size chooses more of a machine's. PYTHON names the interpreter to use, LAUNCHER a command, quoted as
# the shell reads it, that starts it on several GPUs (see examples/wmt14_en_de/train.sh).
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: bash $0 DATA_BIN SAVE_DIR ARCH [fairseq-train options]" >&2
    exit 2
fi
data_bin=$1 save_dir=$2 arch=$3
shift 3

if [ -z "$(find "$data_bin/" -maxdepth 1 -name 'dict.*.txt' 2>/dev/null)" ]; then
    echo "error: $data_bin holds no dict.LANG.txt; give the data-bin folder that prepare wrote" >&2
    exit 1
fi

source "$(dirname "${BASH_SOURCE[0]}")/../common/environment.sh"
no_colon "$save_dir"

criterion=label_smoothed_cross_entropy
if [[ $arch == g2lstm* ]]; then
    criterion=g2lstm_label_smoothed_cross_entropy
fi

# fairseq would take all GPUs that it sees, each with a batch of its own.
alone=()
if [ -z "${LAUNCHER:-}" ]; then
    alone=(--distributed-world-size 1)
fi

# The plugin also lets torch load fairseq's checkpoints safely, so a stock arm needs it to resume.
arguments=("$data_bin" --user-dir "$root/fairseq_g2lstm" "${device[@]}" "${alone[@]}"
    --arch "$arch" --encoder-bidirectional --dropout 0.3
    --encoder-dropout-in 0.3 --encoder-dropout-out 0.3
    --decoder-dropout-in 0.3 --decoder-dropout-out 0.3
    --criterion "$criterion" --label-smoothing 0.1
    --optimizer adam --clip-norm 1.0
    --lr 2e-3 --lr-scheduler inverse_sqrt --warmup-updates 400
    --max-tokens 2000 --max-epoch 15 --seed 1 --update-epoch-batch-itr True
    --no-epoch-checkpoints --log-format simple --log-interval 50
    --save-dir "$save_dir" "$@")
mkdir -p "$save_dir"
if [ "${NODES:-1}" = 1 ]; then
    hold_folder "$save_dir"
fi
if [ -f "$save_dir/checkpoint_last.pt" ]; then
    PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONWARNINGS=ignore \
        "$python" -m examples.bitext.same_training "$save_dir" "${arguments[@]}"
fi
launcher=("$python")
if [ -n "${LAUNCHER:-}" ]; then
    eval "launcher=($LAUNCHER)"
fi
"${launcher[@]}" -m fairseq_cli.train "${arguments[@]}" 2>&1 | tee -a "$save_dir/train.log"

#!/usr/bin/env bash
# Train one model on IWSLT'14 German-English: the bitext recipe with options for this corpus.
#   bash examples/iwslt14/train.sh DATA_BIN SAVE_DIR [ARCH] [more fairseq-train options]
# ARCH is g2lstm_iwslt unless given; lstm_wiseman_iwslt_de_en is fairseq's own LSTM of its size.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash $0 DATA_BIN SAVE_DIR [ARCH] [fairseq-train options]" >&2
    exit 2
fi
data_bin=$1 save_dir=$2 arch=g2lstm_iwslt
shift 2
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    arch=$1
    shift
fi
exec bash "$(dirname "${BASH_SOURCE[0]}")/../bitext/train.sh" "$data_bin" "$save_dir" "$arch" \
    --lr 1e-3 --warmup-updates 4000 --weight-decay 1e-4 --max-tokens 4000 --max-epoch 40 \
    --log-interval 100 "$@"

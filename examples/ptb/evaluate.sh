#!/usr/bin/env bash
# Perplexity of a trained language model on the test set.
#   bash examples/ptb/evaluate.sh DATA_BIN SAVE_DIR [fairseq-eval-lm options; later ones win]
# A g2lstm_lm reads the text in order, so that each word's context is all of the text before it; stock lstm_lm carries
# no state, and reads blocks of the length that it was trained on. Writes SAVE_DIR/eval-test.json and eval-test.log,
# eval-test-cache.* with a cache, other names by --gen-subset or by RESULT_NAME in the environment. PYTHON names the
# interpreter to use.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: [RESULT_NAME=NAME] bash $0 DATA_BIN SAVE_DIR [fairseq-eval-lm options]" >&2
    exit 2
fi
data_bin=$1 save_dir=$2
shift 2

if [ ! -f "$save_dir/checkpoint_best.pt" ]; then
    echo "error: no $save_dir/checkpoint_best.pt; train first, with examples/ptb/train.sh" >&2
    exit 1
fi
source "$(dirname "${BASH_SOURCE[0]}")/../common/environment.sh"

PYTHONWARNINGS=ignore PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} \
    "$python" -m examples.ptb.evaluation "$data_bin" "$save_dir" "${device[@]}" "$@"

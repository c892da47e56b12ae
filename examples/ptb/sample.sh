#!/usr/bin/env bash
# Sample text from a trained g2lstm_lm: each line on standard input is the beginning of a sentence, an empty one none at
# all, and the whole sentence is printed, 200 words after its beginning or so at the most (--max-len-b).
#   bash examples/ptb/sample.sh DATA_BIN SAVE_DIR [fairseq-interactive options; later ones win] <PREFIXES
# --beam 3 --nbest 3 gives three sentences a line, --seed N those of an earlier call, which said its seed on standard
# error. What fairseq says stands in SAVE_DIR/sample.log. PYTHON names the interpreter to use.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash $0 DATA_BIN SAVE_DIR [fairseq-interactive options]" >&2
    exit 2
fi
data_bin=$1 save_dir=$2
shift 2

if [ ! -f "$save_dir/checkpoint_best.pt" ]; then
    echo "error: no $save_dir/checkpoint_best.pt; train first, with examples/ptb/train.sh" >&2
    exit 1
fi
source "$(dirname "${BASH_SOURCE[0]}")/../common/environment.sh"

seed=()
if [[ " $* " != *" --seed"[\ =]* ]]; then
    seed=(--seed $((RANDOM << 15 | RANDOM)))
    echo "${seed[*]}" >&2
fi

log=$save_dir/sample.log
if ! "$python" -u -m fairseq_cli.interactive "$data_bin" --user-dir "$root/fairseq_g2lstm" "${device[@]}" \
    --task g2lstm_language_modeling --path "$save_dir/checkpoint_best.pt" \
    --max-len-a 1 --sampling --sampling-topk 10 --beam 1 --nbest 1 "${seed[@]}" "$@" 2>&1 | tee "$log" | sed -u -n 's/^D-[0-9]*\t[^\t]*\t//p'
then
    # the last error without the calls that led to it
    said=$(awk '/^[A-Za-z_.]*((Error|Exception)(:|$)|: error: )/ { text = ""; n = 15 } n-- > 0 { text = text $0 "\n" }
        END { printf "%s", text }' "$log")
    echo "error: fairseq-interactive failed: ${said:-$(tail -n 15 "$log")}" >&2
    echo "All it said is in $log" >&2
    exit 1
fi

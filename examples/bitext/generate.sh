#!/usr/bin/env bash
# Translate the test set with a trained model and print fairseq's BLEU.
#   bash examples/bitext/generate.sh DATA_BIN SAVE_DIR [fairseq-generate options; later ones win]
# Writes generate-test.txt (and fairseq's messages in generate-test.log), test.hyp and test.ref to
# RESULT_DIR, which is SAVE_DIR unless set in the environment; under another --gen-subset they bear
# its name. PYTHON names the interpreter to use.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: [RESULT_DIR=DIR] bash $0 DATA_BIN SAVE_DIR [fairseq-generate options]" >&2
    exit 2
fi
data_bin=$1 save_dir=$2
shift 2
result_dir=${RESULT_DIR:-$save_dir}

if [ ! -f "$save_dir/checkpoint_best.pt" ]; then
    echo "error: no $save_dir/checkpoint_best.pt; train first, with examples/bitext/train.sh" >&2
    exit 1
fi
if [ -f "$save_dir/train.log" ] && ! tail -n 20 "$save_dir/train.log" | grep -q "done training"; then
    echo "warning: by $save_dir/train.log the training there is not done; this is its best model so far" >&2
fi
source "$(dirname "${BASH_SOURCE[0]}")/../common/environment.sh"

subset=test
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
        --gen-subset) subset=${arguments[i + 1]:-} ;;
        --gen-subset=*) subset=${arguments[i]#*=} ;;
    esac
done

# By default fairseq leaves out a set's last batch where its size is no multiple of eight.
mkdir -p "$result_dir"
log=$result_dir/generate-$subset.txt
messages=$result_dir/generate-$subset.log
trap 'rm -f "$log.part"' EXIT
if ! PYTHONUTF8=1 "$python" -m fairseq_cli.generate "$data_bin" --user-dir "$root/fairseq_g2lstm" \
    "${device[@]}" --gen-subset test --path "$save_dir/checkpoint_best.pt" \
    --beam 5 --remove-bpe --batch-size 128 --required-batch-size-multiple 1 "$@" \
    >"$log.part" 2>"$messages"
then
    tail -n 15 "$messages" >&2
    echo "error: fairseq-generate failed; all it said is in $messages" >&2
    exit 1
fi
mv "$log.part" "$log"
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$python" -m examples.common.generate_log "$log"

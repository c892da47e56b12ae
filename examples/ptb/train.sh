#!/usr/bin/env bash
# Train one language model on prepared text.
#   bash examples/ptb/train.sh RECIPE GATES DATA_BIN SAVE_DIR [fairseq-train options; later ones win]
# RECIPE is small (Zaremba et al. 2014, 200 units), medium (the same, 650 units) or awd (Merity et al. 2018);
# GATES is gumbel, sharpened or sigmoid, or stock for fairseq's own lstm_lm, whose blocks are shuffled.
# Its log goes to SAVE_DIR/train.log too, the time that is left to standard error alone. Called again, it goes on from
# SAVE_DIR/checkpoint_last.pt, unless that is of a training with other options. PYTHON names the interpreter to use.
# With ONLY_CHECK=1 nothing is trained: it tells whether fairseq-train takes the options.
# One GPU, since more would share the rows of a batch out: of a recipe that says 20, --distributed-world-size 4 makes 80.
set -euo pipefail

usage() {
    echo "usage: bash $0 small|medium|awd gumbel|sharpened|sigmoid|stock DATA_BIN SAVE_DIR [fairseq-train options]" >&2
    exit 2
}
[ $# -ge 4 ] || usage
recipe=$1 gates=$2 data_bin=$3 save_dir=$4
shift 4

if [ ! -f "$data_bin/dict.txt" ]; then
    echo "error: $data_bin holds no dict.txt; give the data-bin folder that examples/ptb/prepare.py wrote" >&2
    exit 1
fi
source "$(dirname "${BASH_SOURCE[0]}")/../common/environment.sh"
no_colon "$save_dir"

# Zaremba et al. sum the loss over a block and average it over its rows: --sentence-avg.
case $recipe in
    small)
        sizes=(--decoder-embed-dim 200 --decoder-out-embed-dim 200 --decoder-layers 2 --dropout 0)
        training=(--sentence-avg --optimizer sgd --lr 1.0 --clip-norm 5 --lr-scheduler fixed --force-anneal 5
            --lr-shrink 0.5 --batch-size 20 --tokens-per-sample 20 --max-epoch 13)
        arch=g2lstm_lm
        ;;
    medium)
        sizes=(--decoder-embed-dim 650 --decoder-out-embed-dim 650 --decoder-layers 2 --dropout 0.5)
        training=(--sentence-avg --optimizer sgd --lr 1.0 --clip-norm 5 --lr-scheduler fixed --force-anneal 7
            --lr-shrink 0.8333333333 --batch-size 20 --tokens-per-sample 35 --max-epoch 39)
        arch=g2lstm_lm_zaremba
        ;;
    awd)
        sizes=()
        training=(--activation-reg 2 --temporal-activation-reg 1 --optimizer nt_asgd --asgd-nonmono 5
            --lr 30 --clip-norm 0.25 --weight-decay 1.2e-6 --batch-size 20 --batch-size-valid 10
            --tokens-per-sample 70 --variable-tokens-per-sample --max-epoch 500)
        arch=g2lstm_lm_ptb
        ;;
    *) usage ;;
esac
case $gates in
    gumbel | sharpened | sigmoid)
        model=(--task g2lstm_language_modeling --arch "$arch" --gate-type "$gates" --criterion g2lstm_cross_entropy)
        if [ $recipe = small ]; then
            model+=("${sizes[@]}")
        fi
        ;;
    stock)
        if [ $recipe = awd ]; then
            echo "error: fairseq's lstm_lm has none of what the recipe awd needs; use small or medium" >&2
            exit 1
        fi
        # 20 rows, where fairseq would round down to a multiple of 8
        model=(--task language_modeling --arch lstm_lm "${sizes[@]}" --criterion cross_entropy
            --required-batch-size-multiple 1)
        ;;
    *) usage ;;
esac

# The plugin also lets torch load fairseq's checkpoints safely, so the stock arm needs it to resume.
arguments=("$data_bin" --user-dir "$root/fairseq_g2lstm" "${device[@]}" "${model[@]}" "${training[@]}"
    --seed 1 --update-epoch-batch-itr True --num-workers 0 --no-epoch-checkpoints --distributed-world-size 1
    --log-format simple --log-interval 200 --save-dir "$save_dir" "$@")
export_examples=PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [ -n "${ONLY_CHECK:-}" ]; then
    exec env "$export_examples" PYTHONWARNINGS=ignore "$python" -m examples.common.fairseq_options "${arguments[@]}"
fi
mkdir -p "$save_dir"
hold_folder "$save_dir"
if [ -f "$save_dir/checkpoint_last.pt" ]; then
    env "$export_examples" PYTHONWARNINGS=ignore "$python" -m examples.ptb.same_training "$save_dir" "${arguments[@]}"
fi
"$python" -m fairseq_cli.train "${arguments[@]}" 2>&1 | tee -a "$save_dir/train.log" |
    env "$export_examples" "$python" -m examples.ptb.progress

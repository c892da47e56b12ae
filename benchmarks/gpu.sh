#!/usr/bin/env bash
# All that waits for a GPU: builds the kernels, runs the tests, compute-sanitizer and the benchmarks, and keeps every log and
# result. A step that fails or outlasts its limit does not stop the others, but for a build without CUDA kernels; a short
# table of all comes last. Without a GPU it runs too, on the CPU.
#
# usage: bash benchmarks/gpu.sh [build|kernels|persistent|sanitize|layer|end-to-end|language-model|suite|ptb ...]
#   default: all but ptb, in this order; kernels, persistent and suite are the tests of the CUDA operators, of the layer in
#   one launch, and all others. ptb trains and evaluates by the recipes of examples/ptb; called again, it goes on
#   OUT          folder of logs and results (default runs/gpu)
#   WHEELS       folder of wheels to install first, where there is no network
#   DATA         fairseq's data-bin for end-to-end (default: the quickstart's generated text)
#   CHECKPOINT   stock checkpoint to translate with (default: one is trained)
#   TEXT         fairseq's data-bin of a text for language-model (default: the quickstart's generated text)
#   PTB_RUNS     trainings of ptb, RECIPE-GATES each (default "medium-sigmoid medium-gumbel awd-sigmoid awd-gumbel")
#   PTB_DIR      their checkpoints (default runs/gpu-ptb)
#   LIMIT        seconds that a step may take, each training of ptb too (default 3600)
#   LAYER_OPTIONS, END_TO_END_OPTIONS, LANGUAGE_MODEL_OPTIONS
#                further options of those parts of benchmarks.run, as "--rounds 3 --no-sweep"
#   SMOKE=1      tiny sizes, to see that everything works
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build kernels persistent sanitize layer end-to-end language-model suite)
smoke=${SMOKE:+--smoke}
table=$OUT/steps.txt
: > "$table"

if [ -n "${WHEELS:-}" ]; then
    site=${TMPDIR:-/tmp}/g2lstm-site
    [ -d "$site" ] || python3 -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH=$site:$PWD${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=${PYTHONPATH:-$PWD}
gpu=$(python3 -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")

# step NAME COMMAND…: runs it, its output in NAME.log, and notes exit status, seconds and the log's last line
step() {
    local name=$1 start=$SECONDS status
    shift
    timeout --kill-after 10 "${LIMIT:-3600}" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    printf '%-19s %-8s %5d s  %s\n' "$name" "$([ $status -eq 0 ] && echo passed || echo "exit $status")" \
        $((SECONDS - start)) "$(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1 | cut -c 1-120)" | tee -a "$table"
}

# several processes where pytest-xdist is: one after the other the tests take long
processes=$(python3 -c "import os, xdist; print(len(os.sched_getaffinity(0)))" 2>/dev/null)
tests=(python3 -m pytest -q ${processes:+--numprocesses "$processes"})
for name in "${steps[@]}"; do
    case $name in
        build)
            FAIRSEQ_G2LSTM_REQUIRE_KERNELS=1 step build python3 setup.py build_ext --inplace
            if [ -n "$gpu" ] && ! python3 -c "
import sys
from benchmarks.machine import kernels_missing
sys.exit(kernels_missing('cuda'))"; then
                echo "error: built without CUDA kernels; why stands in $(basename "$OUT")/build.log" >&2
                exit 1
            fi
            ;;
        kernels)
            step kernels "${tests[@]}" tests/test_cuda.py tests/test_cuda_models.py tests/test_philox.py -k "not persistent"
            ;;
        # A kernel that fails takes its process's CUDA context along, so these have processes of their own.
        persistent) step persistent "${tests[@]}" tests/test_cuda.py -k persistent ;;
        suite)
            step suite "${tests[@]}" --dist loadfile ${SMOKE:+tests/test_cell.py} \
                --ignore tests/test_cuda.py --ignore tests/test_cuda_models.py
            ;;
        sanitize)
            if [ -z "$gpu" ] || ! command -v compute-sanitizer > /dev/null; then
                echo "sanitize            left out: it needs a GPU and compute-sanitizer" | tee -a "$table"
                continue
            fi
            # The tools slow a kernel down many times: each sees a few cases of every operator.
            for tool in memcheck racecheck; do
                step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 3 --target-processes all \
                    python3 -m pytest -q -x tests/test_cuda.py \
                    -k "float32 and (ragged or words or step) or persistent and every_mode"
            done
            ;;
        layer) step layer python3 -m benchmarks.run layer $smoke --out "$OUT/layer" ${LAYER_OPTIONS:-} ;;
        end-to-end)
            step end-to-end python3 -m benchmarks.run end-to-end $smoke --out "$OUT/end-to-end" \
                ${DATA:+--data "$DATA"} ${CHECKPOINT:+--checkpoint "$CHECKPOINT"} \
                ${END_TO_END_OPTIONS:-}
            ;;
        language-model)
            step language-model python3 -m benchmarks.run language-model $smoke --out "$OUT/language-model" \
                ${TEXT:+--data "$TEXT"} ${LANGUAGE_MODEL_OPTIONS:-}
            ;;
        ptb)
            if [ -z "${TEXT:-}" ]; then
                echo "ptb                 left out: it needs TEXT, Penn Treebank by examples/ptb/prepare.py" | tee -a "$table"
                continue
            fi
            export PYTHON=${PYTHON:-python3}
            tiny=(${SMOKE:+--decoder-embed-dim 8 --decoder-layer-sizes 9,8 --decoder-out-embed-dim 8 --max-update 3})
            folders=()
            for run in ${PTB_RUNS:-medium-sigmoid medium-gumbel awd-sigmoid awd-gumbel}; do
                folder=${PTB_DIR:-runs/gpu-ptb}/$run
                step "$run" bash examples/ptb/train.sh "${run%-*}" "${run#*-}" "$TEXT" "$folder" "${tiny[@]}"
                step "$run-test" bash examples/ptb/evaluate.sh "$TEXT" "$folder"
                mkdir -p "$OUT/ptb/$run"
                cp "$folder"/train.log "$folder"/eval-test.json "$OUT/ptb/$run" 2> /dev/null
                folders+=("$OUT/ptb/$run")
            done
            step ptb python3 -m examples.ptb.compare "${folders[@]}"
            ;;
        *)
            echo "error: no step is called $name: build, kernels, persistent, sanitize, layer, end-to-end," \
                "language-model, suite or ptb" >&2
            exit 2
            ;;
    esac
done
echo
echo "${gpu:-no GPU}; logs and results in $(basename "$OUT"):"
cat "$table"
! grep -q 'exit [0-9]' "$table"

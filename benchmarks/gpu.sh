#!/usr/bin/env bash
# All that waits for a GPU: builds the kernels, runs the tests, compute-sanitizer and the benchmarks, and keeps every log and
# result. A step that fails or outlasts its limit does not stop the others, but for a build without CUDA kernels; a short
# table of all comes last. Without a GPU it runs too, on the CPU.
#
# usage: bash benchmarks/gpu.sh [build|kernels|persistent|sanitize|profile|layer|end-to-end|language-model|suite|ptb ...]
#   default: all but ptb, in this order; kernels, persistent and suite are the tests of the CUDA operators, of the layer in
#   one launch, and all others. ptb trains and evaluates by the recipes of examples/ptb; called again, it goes on
#   OUT          folder of logs and results (default runs/gpu); its steps.txt has the steps of every call
#   ARCHIVE      file that holds all of OUT after every step, for where few files come back; not in OUT
#   WHEELS       folder of wheels to install first, where there is no network
#   DATA         fairseq's data-bin for end-to-end (default: the quickstart's generated text)
#   CHECKPOINT   stock checkpoint to translate with (default: one is trained)
#   TEXT         fairseq's data-bin of a text for language-model (default: the quickstart's generated text)
#   PTB_RUNS     trainings of ptb, RECIPE-GATES each (default "medium-sigmoid medium-gumbel awd-sigmoid awd-gumbel")
#   PTB_DIR      their checkpoints (default runs/gpu-ptb)
#   LIMIT        seconds that a step may take, each training of ptb too (default 3600)
#   BUDGET       seconds for all of it: steps get no more than what is left, and the benchmarks are short ones
#   LAYER_OPTIONS, END_TO_END_OPTIONS, LANGUAGE_MODEL_OPTIONS
#                further options of those parts of benchmarks.run, as "--rounds 3 --no-sweep"
#   NEED_GPU=1   ends at once where torch sees no GPU
#   SMOKE=1      tiny sizes, to see that everything works
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build kernels persistent sanitize profile layer end-to-end language-model suite)
smoke=${SMOKE:+--smoke}
if [ -n "${ARCHIVE:-}" ] && [[ $(realpath -m "$ARCHIVE") == "$OUT"/* ]]; then
    echo "error: ARCHIVE=$ARCHIVE lies in OUT, all of which it would hold" >&2
    exit 1
fi
table=$(mktemp)
began=$(mktemp)
trap 'rm -f "$table" "$began"' EXIT

if [ -n "${WHEELS:-}" ]; then
    site=${TMPDIR:-/tmp}/g2lstm-site
    if [ ! -d "$site" ]; then
        rm -rf "$site.part"
        python3 -m pip install -q --no-index --no-deps --no-compile --target "$site.part" "$WHEELS"/*.whl &&
            mv "$site.part" "$site" || exit 1
    fi
    export PYTHONPATH=$site:$PWD${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=${PYTHONPATH:-$PWD}
export PYTHONUNBUFFERED=1
# or torch would take the folder of the first nvcc on the path, which may be another program that calls it
if [ -z "${CUDA_HOME:-}" ] && [ -x /usr/local/cuda/bin/nvcc ]; then
    export CUDA_HOME=/usr/local/cuda
fi
gpu=$(python3 -c "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')")
if [ -n "$gpu" ]; then
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$(python3 -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")}
    # where it can run, a kernel that is refused fails its tests
    G2LSTM_REQUIRE_PERSISTENT=$(python3 -c "import torch; print('1' if torch.cuda.get_device_capability() >= (8, 0) else '')")
    export TORCH_CUDA_ARCH_LIST G2LSTM_REQUIRE_PERSISTENT
    nvidia-smi > "$OUT/nvidia-smi.txt" 2>&1
elif [ -n "${NEED_GPU:-}" ]; then
    echo "error: torch sees no GPU" >&2
    exit 1
fi
for folder in ${DATA:+"$DATA"} ${TEXT:+"$TEXT"}; do
    if [ ! -d "$folder" ]; then
        echo "error: no folder $folder" >&2
        exit 1
    fi
done
if [ -n "${CHECKPOINT:-}" ] && [ ! -f "$CHECKPOINT" ]; then
    echo "error: no checkpoint $CHECKPOINT" >&2
    exit 1
fi
if [ -n "${BUDGET:-}" ]; then
    : "${LAYER_OPTIONS=--rounds 3 --no-sweep --peers g2lstm g2lstm-persistent torch.nn.LSTM}"
    : "${END_TO_END_OPTIONS=--repeats 1 --encoders two}"
    : "${LANGUAGE_MODEL_OPTIONS=--rounds 1 --units 650 --blocks 20x35}"
fi

# note TEXT…: a line of the table, and the archive with it
note() {
    echo "$*" | tee -a "$table" "$OUT/steps.txt"
    if [ -n "${ARCHIVE:-}" ]; then
        tar czf "$ARCHIVE.part" -C "$OUT" . && mv "$ARCHIVE.part" "$ARCHIVE"
    fi
}

# step NAME COMMAND…: runs it, its output in NAME.log, and notes exit status, seconds and the log's last line
step() {
    local name=$1 start=$SECONDS limit=${LIMIT:-3600} status
    shift
    if [ -n "${BUDGET:-}" ]; then
        local left=$((BUDGET - SECONDS - 15))  # less what ends and packs it
        if [ $left -lt 20 ]; then
            note "$(printf '%-19s left out: no time' "$name")"
            return 1
        fi
        limit=$((left < limit ? left : limit))
    fi
    timeout --kill-after 10 "$limit" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    if [ -d runs/benchmark/logs ]; then  # fairseq's own, of this run
        mkdir -p "$OUT/logs"
        find runs/benchmark/logs -type f -newer "$began" -exec cp -t "$OUT/logs" {} +
    fi
    note "$(printf '%-19s %-8s %5d s  %s' "$name" "$([ $status -eq 0 ] && echo passed || echo "exit $status")" \
        $((SECONDS - start)) "$(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1 | cut -c 1-120)")"
    return $status
}

# has_text VARIABLE: whether that one gives the text of a step, or it can be made
has_text() {
    [ -n "${!1:-}" ] || python3 -c "import babel, num2words" 2> /dev/null && return
    note "$(printf '%-19s left out: it makes its text by babel and num2words, which are not there; give %s' "$name" "$1")"
    return 1
}

# without the CUDA kernels tests would skip and benchmarks run the reference
build() {
    FAIRSEQ_G2LSTM_REQUIRE_KERNELS=1 step build python3 setup.py build_ext --inplace
    if [ -n "$gpu" ] && ! built; then
        echo "error: built without CUDA kernels; why stands in $(basename "$OUT")/build.log" >&2
        exit 1
    fi
}
built() {
    python3 -c "
import sys
from benchmarks.machine import kernels_missing
sys.exit(kernels_missing('cuda'))" 2> /dev/null
}
if [ -n "$gpu" ] && [[ " ${steps[*]} " != *" build "* ]] && ! built; then
    build
fi

# several processes where pytest-xdist is: one after the other the tests take long
processes=$(python3 -c "import os, xdist; print(len(os.sched_getaffinity(0)))" 2>/dev/null)
pytest=(python3 -m pytest -v --tb short)
# where pytest-timeout is, a kernel that hangs ends its process and no more; a signal would wait for it
has_limits=$(python3 -c "import pytest_timeout; print(1)" 2> /dev/null)
pytest+=(${has_limits:+--timeout 120 --timeout-method thread})
tests=("${pytest[@]}" ${processes:+--numprocesses "$processes"})
for name in "${steps[@]}"; do
    case $name in
        build) build ;;
        kernels)
            step kernels "${tests[@]}" tests/test_cuda.py tests/test_cuda_models.py tests/test_philox.py -k "not persistent"
            ;;
        # A kernel that fails takes its process's CUDA context along, so these have processes of their own.
        persistent) step persistent "${tests[@]}" tests/test_cuda.py -k persistent ;;
        suite)
            # as on a machine without a GPU: fairseq's --cpu clips gradients by a norm on the GPU that it sees, and fails
            CUDA_VISIBLE_DEVICES= step suite "${tests[@]}" --dist loadfile ${SMOKE:+tests/test_cell.py} \
                --ignore tests/test_cuda.py --ignore tests/test_cuda_models.py
            ;;
        sanitize)
            if [ -z "$gpu" ] || ! command -v compute-sanitizer > /dev/null; then
                note "sanitize            left out: it needs a GPU and compute-sanitizer"
                continue
            fi
            # The tools slow a kernel down many times: each sees a few cases of every operator, and has longer for them.
            # Within a segment of torch's allocator memcheck would find nothing out of bounds.
            for tool in memcheck racecheck; do
                PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" \
                    compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 3 --target-processes all \
                    "${pytest[@]}" ${has_limits:+--timeout 600} --maxfail 5 tests/test_cuda.py -k "float32 and (ragged or step) or \
                    random_words or persistent and every_mode or persistent and more_pieces and float32 or \
                    decoder and every_size and float32"
            done
            ;;
        profile)
            if [ -z "$gpu" ] || ! command -v ncu > /dev/null; then
                note "profile             left out: it needs a GPU and ncu"
                continue
            fi
            # every kernel a few times, each replayed for its counters, at the clocks that the device has; cuBLAS calls
            # its products by several names
            step profile ncu --set basic --clock-control none --kernel-name-base demangled \
                --kernel-name "regex:run_sequence|run_units|gemm|nvjet" --launch-count 400 \
                --csv --log-file "$OUT/profile.csv" python3 -m benchmarks.profiled
            ;;
        layer) step layer python3 -m benchmarks.run layer $smoke --out "$OUT/layer" ${LAYER_OPTIONS:-} ;;
        end-to-end)
            has_text DATA || continue
            step end-to-end python3 -m benchmarks.run end-to-end $smoke --out "$OUT/end-to-end" \
                ${DATA:+--data "$DATA"} ${CHECKPOINT:+--checkpoint "$CHECKPOINT"} \
                ${END_TO_END_OPTIONS:-}
            ;;
        language-model)
            has_text TEXT || continue
            step language-model python3 -m benchmarks.run language-model $smoke --out "$OUT/language-model" \
                ${TEXT:+--data "$TEXT"} ${LANGUAGE_MODEL_OPTIONS:-}
            ;;
        ptb)
            if [ -z "${TEXT:-}" ]; then
                note "ptb                 left out: it needs TEXT, Penn Treebank by examples/ptb/prepare.py"
                continue
            fi
            export PYTHON=${PYTHON:-python3}
            tiny=(${SMOKE:+--decoder-embed-dim 8 --decoder-layer-sizes 9,8 --decoder-out-embed-dim 8 --max-update 3})
            folders=()
            for run in ${PTB_RUNS:-medium-sigmoid medium-gumbel awd-sigmoid awd-gumbel}; do
                folder=${PTB_DIR:-runs/gpu-ptb}/$run
                mkdir -p "$OUT/ptb/$run"
                step "$run" bash examples/ptb/train.sh "${run%-*}" "${run#*-}" "$TEXT" "$folder" "${tiny[@]}"
                cp "$folder/train.log" "$OUT/ptb/$run" 2> /dev/null
                step "$run-test" bash examples/ptb/evaluate.sh "$TEXT" "$folder"
                cp "$folder"/train.log "$folder"/eval-test.json "$OUT/ptb/$run" 2> /dev/null
                folders+=("$OUT/ptb/$run")
            done
            step ptb python3 -m examples.ptb.compare "${folders[@]}"
            ;;
        *)
            echo "error: no step is called $name: build, kernels, persistent, sanitize, profile, layer, end-to-end," \
                "language-model, suite or ptb" >&2
            exit 2
            ;;
    esac
done
echo
echo "${gpu:-no GPU}; logs and results in $(basename "$OUT"):"
cat "$table"
! grep -q 'exit [0-9]\|no time$' "$table"

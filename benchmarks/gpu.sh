#!/usr/bin/env bash
# All that waits for a GPU: builds the kernels, runs the tests, compute-sanitizer and the benchmarks, and keeps every log and
# result. A step that fails or outlasts its limit does not stop the others, but for a build without CUDA kernels; a short
# table of all comes last. Without a GPU it runs too, on the CPU.
#
# usage: bash benchmarks/gpu.sh [build|kernels|layer|end-to-end|persistent|layer-persistent|sanitize|profile|language-model|
#                                suite|ptb ...]
#   default: all but ptb, in this order; kernels, persistent and suite are the tests of the CUDA operators, of the layer in
#   one launch, and all others; layer-persistent times the layer in one launch, unless its tests have just failed. ptb trains
#   and evaluates by the recipes of examples/ptb; called again, it goes on
#   OUT          folder of logs and results (default runs/gpu); its steps.txt has the steps of every call
#   ARCHIVE      file that holds all of OUT after every step, for where few files come back; not in OUT. The library that
#                build made is put beside it
#   WHEELS       folder of wheels to install first, where there is no network
#   DATA         fairseq's data-bin for end-to-end (default: the quickstart's generated text)
#   CHECKPOINT   stock checkpoint to translate with (default: one is trained)
#   TEXT         fairseq's data-bin of a text for language-model (default: the quickstart's generated text)
#   PTB_RUNS     trainings of ptb, RECIPE-GATES each (default "medium-sigmoid medium-gumbel awd-sigmoid awd-gumbel")
#   PTB_DIR      their checkpoints (default runs/gpu-ptb)
#   LIMIT        seconds that a step may take, each training of ptb too, but for build (default 3600)
#   BUDGET       seconds for all of it: steps get no more than what is left, and the benchmarks are short ones
#   LAYER_OPTIONS, END_TO_END_OPTIONS, LANGUAGE_MODEL_OPTIONS
#                further options of those parts of benchmarks.run, as "--rounds 3 --no-sweep"
#   COMMIT       what the results say where the tree has no history
#   NEED_GPU=1   ends at once where torch sees no GPU or nothing tells the commit; a profiler that is not there is a failure
#   SMOKE=1      tiny sizes, to see that everything works
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(
    build kernels layer end-to-end persistent layer-persistent sanitize profile language-model suite
)
smoke=${SMOKE:+--smoke}
if [ -n "${ARCHIVE:-}" ] && [[ $(realpath -m "$ARCHIVE") == "$OUT"/* ]]; then
    echo "error: ARCHIVE=$ARCHIVE lies in OUT, all of which it would hold" >&2
    exit 1
fi
[ -z "${ARCHIVE:-}" ] || mkdir -p "$(dirname "$ARCHIVE")"
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
for folder in "${CUDA_HOME:-/usr/local/cuda}/bin" /opt/nvidia/nsight-compute/*/; do
    [ -d "$folder" ] && PATH=$PATH:$folder
done
if ! python3 -c "import torch, fairseq" > "$OUT/imports.log" 2>&1; then
    echo "error: torch and fairseq cannot be imported: $(tail -n 1 "$OUT/imports.log")" >&2
    exit 1
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
if [ -n "${NEED_GPU:-}" ] && [ -z "${COMMIT:-}" ] && ! git rev-parse HEAD > /dev/null 2>&1; then
    echo "error: the tree has no history: give the commit that the results are of as COMMIT" >&2
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
    : "${LAYER_OPTIONS=--rounds 3 --no-sweep}"
    : "${END_TO_END_OPTIONS=--repeats 2 --encoders two --updates 110 --warmup 50 --decode-updates 100}"
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
    LIMIT=3600 FAIRSEQ_G2LSTM_REQUIRE_KERNELS=1 step build python3 setup.py build_ext --inplace
    if [ -n "$gpu" ] && ! built; then
        echo "error: built without CUDA kernels; why stands in $(basename "$OUT")/build.log. $(tail -n 1 "$OUT/built.log")" >&2
        exit 1
    fi
    if [ -n "$gpu" ] && [ -n "${ARCHIVE:-}" ]; then
        cp fairseq_g2lstm/_kernels*.so "$(dirname "$ARCHIVE")/"
    fi
}
built() {
    python3 -c "
import sys
from benchmarks.machine import kernels_missing
sys.exit(kernels_missing('cuda'))" > "$OUT/built.log" 2>&1
}
if [ -n "$gpu" ] && [[ " ${steps[*]} " != *" build "* ]] && ! built; then
    build
fi

# lacks STEP TOOL: whether the step has no GPU or no such tool, which is told
lacks() {
    [ -n "$gpu" ] && command -v "$2" > /dev/null && return 1
    note "$(printf '%-19s left out: ' "$1")$([ -n "$gpu" ] && echo "$2 is not there" || echo "it needs a GPU and $2")"
}

# several processes where pytest-xdist is: one after the other the tests take long
processes=$(python3 -c "import os, xdist; print(len(os.sched_getaffinity(0)))" 2>/dev/null)
pytest=(python3 -m pytest -v --tb short)
# where pytest-timeout is, a kernel that hangs ends its process and no more; a signal would wait for it
has_limits=$(python3 -c "import pytest_timeout; print(1)" 2> /dev/null)
pytest+=(${has_limits:+--timeout 120 --timeout-method thread})
tests=("${pytest[@]}" ${processes:+--numprocesses "$processes"})
persistent=

# sanitized STEP TESTS: some of the tests of the CUDA operators under compute-sanitizer's tool that the step is named after
sanitized() {
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$1" compute-sanitizer --tool "${1%%-*}" "${sanitizer[@]}" \
        "${pytest[@]}" ${has_limits:+--timeout 60} tests/test_cuda.py -k "$2"
}

for name in "${steps[@]}"; do
    case $name in
        build) build ;;
        kernels)
            step kernels "${tests[@]}" tests/test_cuda.py tests/test_cuda_models.py tests/test_philox.py -k "not persistent"
            ;;
        # A kernel that fails takes its process's CUDA context along, so these have processes of their own.
        persistent) step persistent "${tests[@]}" tests/test_cuda.py -k persistent || persistent=failed ;;
        suite)
            # as on a machine without a GPU: fairseq's --cpu clips gradients by a norm on the GPU that it sees, and fails
            CUDA_VISIBLE_DEVICES= step suite "${tests[@]}" --dist loadfile ${SMOKE:+tests/test_cell.py} \
                --ignore tests/test_cuda.py --ignore tests/test_cuda_models.py
            ;;
        sanitize)
            lacks sanitize compute-sanitizer && continue
            # The tools slow a kernel down many times, so each sees a few cases of our own kernels; a bad access ends its
            # kernel, and what comes later is seen too. These options have not always been there.
            sanitizer=(--report-api-errors no --error-exitcode 3 --target-processes all)
            can=$(compute-sanitizer --help 2> /dev/null)
            if [[ $can == *--kernel-name* ]]; then
                sanitizer+=(--kernel-name kns=g2lstm)
            elif [[ $can == *--kernel-regex* ]]; then
                sanitizer+=(--kernel-regex kns=g2lstm)
            fi
            [[ $can != *--destroy-on-device-error* ]] || sanitizer+=(--destroy-on-device-error kernel)
            # Within a segment of torch's allocator memcheck would find nothing out of bounds. Shared memory, racecheck's
            # matter, have the attention and the layer in one launch.
            decoder="test_decoder_equals_the_reference_at_every_size and float32"
            few="test_persistent_layer and (in_every_mode or more_pieces)"
            sanitized memcheck "test_step_equals_the_reference_at_every_size and float32 or test_random_words or \
                test_layer_equals_the_reference_at_every_length and ragged and float32 or $decoder"
            sanitized memcheck-persistent "$few"
            sanitized racecheck "$decoder"
            sanitized racecheck-persistent "$few"
            ;;
        profile)
            lacks profile ncu && continue
            # every kernel a few times, each replayed for its counters, at the clocks that the device has; cuBLAS calls
            # its products by several names
            for kernel in steps persistent; do
                step "profile-$kernel" ncu --set basic --clock-control none --kernel-name-base demangled \
                    --kernel-name "regex:run_sequence|run_units|gemm|nvjet" --launch-count 200 \
                    --csv --log-file "$OUT/profile-$kernel.csv" python3 -m benchmarks.profiled "$kernel"
            done
            ;;
        layer) step layer python3 -m benchmarks.run layer $smoke --out "$OUT/layer" ${LAYER_OPTIONS:-} ;;
        layer-persistent)
            if [ -n "$persistent" ]; then
                note "$(printf '%-19s left out: its tests did not pass' "$name")"
                continue
            fi
            step layer-persistent python3 -m benchmarks.run layer $smoke --out "$OUT/layer-persistent" ${LAYER_OPTIONS:-} \
                --peers g2lstm g2lstm-persistent torch.nn.LSTM
            ;;
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
            echo "error: no step is called $name: build, kernels, layer, end-to-end, persistent, layer-persistent, sanitize," \
                "profile, language-model, suite or ptb" >&2
            exit 2
            ;;
    esac
done
echo
echo "${gpu:-no GPU}; logs and results in $(basename "$OUT"):"
cat "$table"
! grep -q "exit [0-9]\|no time\$${NEED_GPU:+\|is not there\$}" "$table"

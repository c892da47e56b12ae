#!/usr/bin/env bash
# All that waits for a GPU: builds the kernels, runs the tests, compute-sanitizer and the benchmarks, and keeps every log and
# result. A step that fails does not stop the others; a short table of all comes last. Without a GPU it runs too, on the CPU.
#
# usage: bash benchmarks/gpu.sh [build|test|sanitize|layer|end-to-end|language-model ...]   default: all, in this order
#   OUT          folder of logs and results (default runs/gpu)
#   WHEELS       folder of wheels to install first, where there is no network
#   DATA         fairseq's data-bin for end-to-end (default: the quickstart's generated text)
#   CHECKPOINT   stock checkpoint to translate with (default: one is trained)
#   TEXT         fairseq's data-bin of a text for language-model (default: the quickstart's generated text)
#   SMOKE=1      tiny sizes, to see that everything works
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
mkdir -p "$OUT"
OUT=$(realpath "$OUT")
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build test sanitize layer end-to-end language-model)
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
    "$@" > "$OUT/$name.log" 2>&1
    status=$?
    printf '%-14s %-7s %5d s  %s\n' "$name" "$([ $status -eq 0 ] && echo passed || echo "exit $status")" \
        $((SECONDS - start)) "$(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1 | cut -c 1-120)" | tee -a "$table"
}

for name in "${steps[@]}"; do
    case $name in
        build) FAIRSEQ_G2LSTM_REQUIRE_KERNELS=1 step build python3 setup.py build_ext --inplace ;;
        test)
            # several files at a time where pytest-xdist is: one after the other they take long
            processes=$(python3 -c "import os, xdist; print(max(1, len(os.sched_getaffinity(0)) // 2))" 2>/dev/null)
            step test python3 -m pytest -q ${processes:+--numprocesses "$processes" --dist loadfile} \
                ${SMOKE:+tests/test_cuda.py tests/test_philox.py}
            ;;
        sanitize)
            if [ -z "$gpu" ] || ! command -v compute-sanitizer > /dev/null; then
                echo "sanitize       left out: it needs a GPU and compute-sanitizer" | tee -a "$table"
                continue
            fi
            # The tools slow a kernel down many times: each sees a few cases of every operator.
            for tool in memcheck racecheck; do
                step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 3 --target-processes all \
                    python3 -m pytest -q -x tests/test_cuda.py \
                    -k "float32 and (ragged or words or step) or persistent and every_mode"
            done
            ;;
        layer) step layer python3 -m benchmarks.run layer $smoke --out "$OUT/layer" ;;
        end-to-end)
            step end-to-end python3 -m benchmarks.run end-to-end $smoke --out "$OUT/end-to-end" \
                ${DATA:+--data "$DATA"} ${CHECKPOINT:+--checkpoint "$CHECKPOINT"}
            ;;
        language-model)
            step language-model python3 -m benchmarks.run language-model $smoke --out "$OUT/language-model" \
                ${TEXT:+--data "$TEXT"}
            ;;
        *)
            echo "error: no step is called $name: build, test, sanitize, layer, end-to-end or language-model" >&2
            exit 2
            ;;
    esac
done
echo
echo "${gpu:-no GPU}; logs and results in $(basename "$OUT"):"
cat "$table"
! grep -q 'exit [0-9]' "$table"

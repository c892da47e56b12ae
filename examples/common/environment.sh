# Sourced by the recipes. Sets: root (the repository), python (PYTHON, else python), and
# device (--cpu where torch sees no GPU, else empty).
root=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python}
if ! gpus=$("$python" -c 'import fairseq_cli, torch; print(torch.cuda.device_count())' 2>/dev/null)
then
    echo "error: $python cannot import torch and fairseq; activate the project's environment," \
        "or name its interpreter: PYTHON=PATH bash $0 …" >&2
    # its last words tell a missing package from a broken one
    { "$python" -c 'import fairseq_cli, torch' 2>&1 || true; } | tail -n 1 >&2
    exit 1
fi
device=()
if [ "$gpus" = 0 ]; then
    device=(--cpu)
fi

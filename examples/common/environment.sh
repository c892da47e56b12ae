# Sourced by the recipes. Sets: root (the repository), python (PYTHON, else python), and
# device (--cpu where torch sees no GPU, else empty). Brings: no_colon, hold_folder.
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

# no_colon SAVE_DIR: ends the script where fairseq would not find the checkpoints again.
no_colon() {
    if [[ $1 == *:* ]]; then
        echo "error: SAVE_DIR must have no colon, which fairseq takes for the end of a path, got $1" >&2
        exit 1
    fi
}

# hold_folder SAVE_DIR: ends the script where another training writes to the folder, and keeps the next one away. The lock
# is held by fairseq too, which may outlive the script; one that was told to end has some seconds for it. File systems
# without locks, and systems without flock, do without.
hold_folder() {
    command -v flock >/dev/null || return 0
    exec 9>>"$1/.lock"
    local status=0
    flock --conflict-exit-code 75 --wait 5 9 2>/dev/null || status=$?
    if [ $status -eq 75 ]; then
        echo "error: another training is running in $1; end it first, or give another SAVE_DIR" >&2
        exit 1
    fi
}

#!/usr/bin/env bash
# Train one model on WMT'14 English-German, on all GPUs of one machine or of several.
#   bash examples/wmt14_en_de/train.sh DATA_BIN SAVE_DIR [ARCH] [more fairseq-train options]
# ARCH is g2lstm_wmt unless given; lstm_luong_wmt_en_de is fairseq's own LSTM of its size.
# From the environment: GPUS, of each machine (all that torch sees); NODES, the machines (1); and,
# on each of several, NODE_RANK, from 0 on, MASTER_ADDR, the first one's address, and MASTER_PORT
# (29500).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash $0 DATA_BIN SAVE_DIR [ARCH] [fairseq-train options]" >&2
    exit 2
fi
data_bin=$1 save_dir=$2 arch=g2lstm_wmt
shift 2
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    arch=$1
    shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/../common/environment.sh"
if [ "${GPUS:-$gpus}" -gt "$gpus" ]; then
    echo "error: GPUS=$GPUS, but torch sees $gpus" >&2
    exit 1
fi
gpus=${GPUS:-$gpus}
nodes=${NODES:-1}
if [ "$nodes" -gt 1 ] && [ "$gpus" = 0 ]; then
    echo "error: NODES=$nodes needs GPUs on each machine, but torch sees none here" >&2
    exit 1
fi
world_size=$((gpus * nodes))
distributed=()
if [ "$world_size" -gt 1 ]; then
    if [ "$nodes" -gt 1 ] && { [ -z "${MASTER_ADDR:-}" ] || [ -z "${NODE_RANK:-}" ]; }; then
        echo "error: with NODES=$nodes set MASTER_ADDR, the first machine's address, and" \
            "NODE_RANK, this machine's number from 0 to $((nodes - 1))" >&2
        exit 1
    fi
    launcher=("$python" -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$gpus"
        --node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-127.0.0.1}"
        --master-port "${MASTER_PORT:-29500}")
    LAUNCHER=$(printf '%q ' "${launcher[@]}")
    export LAUNCHER
    # fairseq guesses the world size from one machine's GPUs, and with one GPU on each machine would
    # train as many separate models.
    distributed=(--distributed-world-size "$world_size")
fi
exec bash "$root/examples/bitext/train.sh" "$data_bin" "$save_dir" "$arch" \
    --dropout 0.2 --encoder-dropout-in 0.2 --encoder-dropout-out 0.2 \
    --decoder-dropout-in 0.2 --decoder-dropout-out 0.2 \
    --lr 1e-3 --warmup-updates 4000 --max-tokens 4096 --max-epoch 0 --max-update 200000 \
    --save-interval-updates 5000 --keep-interval-updates 2 --log-interval 100 \
    "${distributed[@]}" "$@"

#!/usr/bin/env bash
# Translate newstest2014: as examples/bitext/generate.sh, which says more.
#   bash examples/wmt14_en_de/generate.sh DATA_BIN SAVE_DIR [more fairseq-generate options]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../bitext/generate.sh" "$@"

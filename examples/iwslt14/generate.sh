#!/usr/bin/env bash
# Translate IWSLT'14's test set: as examples/bitext/generate.sh, which says more.
#   bash examples/iwslt14/generate.sh DATA_BIN SAVE_DIR [more fairseq-generate options]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../bitext/generate.sh" "$@"

"""Models that fairseq finds through --user-dir."""

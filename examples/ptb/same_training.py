"""Whether train.sh can go on: whether its folder holds the same training, and a whole checkpoint.

    python -m examples.ptb.same_training SAVE_DIR [all of fairseq-train's arguments]
"""

from examples.common.errors import run_main
from examples.common.same_training import main_of
from examples.ptb.trained_runs import identity


def main() -> None:
    """The command."""
    main_of("examples.ptb.same_training", identity)


if __name__ == "__main__":
    run_main(main)

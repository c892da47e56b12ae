"""The examples' shell scripts: the command lines they end in, and what they tell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from example_texts import write

from examples.common.checkpoints import replace_cut_off
from examples.common.errors import UserError

STUB = """#!/bin/sh
case "$1" in
    -c) echo "$STUB_GPUS" ;;
    *) [ "$2" = examples.ptb.progress ] && exec cat
       printf '%s\\n' "$@" ;;
esac
"""


def stub(folder: Path) -> Path:
    """A stand-in for the interpreter that prints its command line."""
    python = write(folder / "python", STUB)
    python.chmod(0o755)
    return python


def launched(tmp_path: Path, script: str, *given: str, **environment: str) -> list[str]:
    """The command line that a training script ends in, with a stand-in for the interpreter."""
    write(tmp_path / "data" / "dict.en.txt", "")
    done = subprocess.run(
        ["bash", script, str(tmp_path / "data"), str(tmp_path / "save"), *given],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "PYTHON": str(stub(tmp_path)),
            "STUB_GPUS": "0",
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "save" / "train.log").read_text() == done.stdout
    return done.stdout.splitlines()


def last(options: list[str], name: str) -> str:
    """The value that argparse takes where an option is given more than once."""
    return options[len(options) - options[::-1].index(name)]


def check_hydra_config(path: Path, options: list[str]) -> None:
    """A file for fairseq-hydra-train says what the script's command line does, and nothing else."""
    config = yaml.safe_load(path.read_text())
    flags = {f"--{name.replace('_', '-')}" for group in config.values() for name in group}
    groups = {"--arch", "--task", *(f"--{group.replace('_', '-')}" for group in config)}
    assert {option for option in options if option.startswith("--")} <= flags | groups | {"--cpu"}
    assert config["model"].pop("_name") == last(options, "--arch")
    # on the command line these are the defaults, of the plugin or of fairseq
    unsaid = {"gate_temperature": 0.9, "gate_noise_prob": 0.2, "gate_type": "gumbel", "momentum": 0.0}
    unsaid |= {"weight_decay": 0.0, "task": "translation", "lr_scheduler": "fixed"}
    for group in ("task", "criterion", "optimizer", "lr_scheduler"):
        flag = f"--{group.replace('_', '-')}"
        assert config[group].pop("_name") == (last(options, flag) if flag in options else unsaid[group])
    del config["hydra"]
    for group in config.values():
        for name, value in group.items():
            flag = f"--{name.replace('_', '-')}"
            if name in ("user_dir", "data", "save_dir") or str(value).startswith("${"):
                continue
            if flag not in options:
                assert value == unsaid[name], name
            elif value is True:
                assert options[options.index(flag) + 1].startswith("--") or last(options, flag) == "True"
            else:
                value = value[0] if isinstance(value, list) else value
                given = last(options, flag)
                assert given == value or float(given) == float(value), name


@pytest.mark.parametrize("folder", ["bitext", "iwslt14", "wmt14_en_de"])
def test_hydra_has_the_options_of_the_script(tmp_path, folder):
    arch = ["g2lstm_iwslt"] if folder == "bitext" else []
    options = launched(tmp_path, f"examples/{folder}/train.sh", *arch)
    if folder == "wmt14_en_de":  # what its file leaves to fairseq: as many GPUs as there are, any number of epochs
        for name, usual in (("--distributed-world-size", "1"), ("--max-epoch", "0")):
            assert last(options, name) == usual
            while name in options:
                del options[options.index(name) : options.index(name) + 2]
    (config,) = (ROOT / "examples" / folder / "config").iterdir()
    check_hydra_config(config, options)


@pytest.mark.parametrize(
    ("arch", "criterion"),
    [
        ("lstm_wiseman_iwslt_de_en", "label_smoothed_cross_entropy"),
        ("g2lstm_iwslt", "g2lstm_label_smoothed_cross_entropy"),
    ],
)
def test_both_arms_train_by_one_recipe_and_the_users_options_win(tmp_path, arch, criterion):
    options = launched(tmp_path, "examples/bitext/train.sh", arch, "--lr", "5", "--seed", "2")
    assert options[:2] == ["-m", "fairseq_cli.train"]
    assert last(options, "--arch") == arch
    assert last(options, "--criterion") == criterion
    assert (last(options, "--lr"), last(options, "--seed")) == ("5", "2")
    assert last(options, "--update-epoch-batch-itr") == "True"
    assert "--cpu" in options


def test_the_iwslt14_recipe_differs_only_where_it_says(tmp_path):
    options = launched(tmp_path, "examples/iwslt14/train.sh", "--max-epoch", "1", STUB_GPUS="1")
    assert last(options, "--arch") == "g2lstm_iwslt"
    assert (last(options, "--lr"), last(options, "--max-epoch")) == ("1e-3", "1")
    assert "--cpu" not in options
    assert "torch.distributed.run" not in options


@pytest.mark.parametrize("folder", ["bitext", "iwslt14"])
def test_of_several_gpus_one_is_taken_unless_more_are_asked_for(tmp_path, folder):
    script = f"examples/{folder}/train.sh"
    assert last(launched(tmp_path / "1", script, "g2lstm", STUB_GPUS="8"), "--distributed-world-size") == "1"
    more = launched(tmp_path / "4", script, "g2lstm", "--distributed-world-size", "4", STUB_GPUS="8")
    assert last(more, "--distributed-world-size") == "4"


def test_wmt14_trains_on_all_gpus_of_one_machine(tmp_path):
    options = launched(
        tmp_path, "examples/wmt14_en_de/train.sh", "lstm_luong_wmt_en_de", STUB_GPUS="8"
    )
    assert options[:2] == ["-m", "torch.distributed.run"]
    assert last(options, "--nproc-per-node") == "8"
    assert last(options, "--distributed-world-size") == "8"
    assert last(options, "--arch") == "lstm_luong_wmt_en_de"


def test_wmt14_takes_an_interpreter_with_a_blank_in_its_path(tmp_path):
    options = launched(tmp_path / "my environment's", "examples/wmt14_en_de/train.sh", STUB_GPUS="2")
    assert options[:2] == ["-m", "torch.distributed.run"]


def test_wmt14_trains_on_several_machines_of_one_gpu(tmp_path):
    options = launched(
        tmp_path,
        "examples/wmt14_en_de/train.sh",
        STUB_GPUS="1",
        NODES="3",
        NODE_RANK="2",
        MASTER_ADDR="10.0.0.1",
    )
    assert [last(options, name) for name in ("--nnodes", "--node-rank", "--master-addr")] == [
        "3",
        "2",
        "10.0.0.1",
    ]
    assert last(options, "--distributed-world-size") == "3"


@pytest.mark.parametrize("gpus", [{"STUB_GPUS": "1"}, {"STUB_GPUS": "8", "GPUS": "1"}], ids=str)
def test_wmt14_on_one_gpu_needs_no_torchrun(tmp_path, gpus):
    options = launched(tmp_path, "examples/wmt14_en_de/train.sh", **gpus)
    assert "torch.distributed.run" not in options
    assert last(options, "--distributed-world-size") == "1"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"GPUS": "2"}, "error: GPUS=2, but torch sees 1\n"),
        ({"NODES": "2"}, "error: with NODES=2 set MASTER_ADDR, the first machine's address, and"),
    ],
)
def test_wmt14_tells_what_several_gpus_or_machines_lack(tmp_path, environment, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        launched(tmp_path, "examples/wmt14_en_de/train.sh", STUB_GPUS="1", **environment)


@pytest.mark.parametrize("is_done", [True, False])
def test_a_training_that_is_not_done_is_translated_with_a_warning(tmp_path, is_done):
    write(tmp_path / "save" / "checkpoint_best.pt", "")
    end = "INFO | done training in 3.2 seconds" if is_done else "INFO | begin training epoch 2"
    write(tmp_path / "save" / "train.log", "INFO | done training in 1.0 seconds\n" + "INFO | begin\n" * 30 + end + "\n")
    command = ["bash", "examples/bitext/generate.sh", str(tmp_path), str(tmp_path / "save")]
    environment = {**os.environ, "PYTHON": str(stub(tmp_path)), "STUB_GPUS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("the training there is not done" in done.stderr) == (not is_done)


@pytest.mark.parametrize("folder", ["bitext", "iwslt14", "wmt14_en_de"])
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("train", "holds no dict.LANG.txt"),
        ("generate", "no .*/checkpoint_best.pt; train first"),
    ],
)
def test_scripts_tell_what_is_missing(tmp_path, folder, script, message):
    command = ["bash", f"examples/{folder}/{script}.sh", str(tmp_path), str(tmp_path), "g2lstm"]
    environment = {**os.environ, "PYTHON": str(stub(tmp_path)), "STUB_GPUS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert re.search(message, done.stderr), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["python"]
    usage = subprocess.run(command[:2], capture_output=True, text=True, cwd=ROOT)
    assert (usage.returncode, usage.stderr[:6]) == (2, "usage:")


@pytest.mark.parametrize("script", ["bitext/train.sh", "ptb/train.sh"])
def test_a_colon_in_the_folder_of_checkpoints_is_refused_before_the_training(tmp_path, script):
    for name in ("dict.de.txt", "dict.txt"):
        write(tmp_path / name, "")
    save_dir = tmp_path / "run:1"
    given = ["small", "gumbel", tmp_path, save_dir] if script.startswith("ptb") else [tmp_path, save_dir, "g2lstm"]
    environment = {**os.environ, "PYTHON": str(stub(tmp_path)), "STUB_GPUS": "0"}
    command = ["bash", f"examples/{script}", *given]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    said = f"error: SAVE_DIR must have no colon, which fairseq takes for the end of a path, got {save_dir}\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert not save_dir.exists()


def test_a_data_folder_may_have_any_name(tmp_path):
    options = launched(tmp_path / "a[1] *\\x", "examples/bitext/train.sh", "g2lstm")
    assert options[2] == str(tmp_path / "a[1] *\\x" / "data")


def test_an_interpreter_without_fairseq_is_told(tmp_path):
    (tmp_path / "dict.de.txt").touch()
    command = ["bash", "examples/bitext/train.sh", str(tmp_path), str(tmp_path / "save"), "lstm"]
    environment = {**os.environ, "PYTHON": "no-such-python"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no-such-python cannot import torch and fairseq; activate")
    assert not (tmp_path / "save").exists()


def test_a_search_path_of_cd_changes_nothing(tmp_path):
    options = launched(tmp_path, "examples/bitext/train.sh", "g2lstm_iwslt", CDPATH=".:/tmp")
    assert last(options, "--user-dir") == str(ROOT / "fairseq_g2lstm")


def test_a_checkpoint_that_was_cut_off_gives_way_to_the_newest_whole_one(tmp_path, capsys):
    names = ("checkpoint_1_10.pt", "checkpoint_best.pt", "checkpoint_last.pt")
    older, best, last_one = (tmp_path / name for name in names)
    for age, path in enumerate((older, best, last_one)):
        torch.save({"age": age, "weights": torch.zeros(100)}, path)
        os.utime(path, (age, age))
    replace_cut_off(tmp_path)
    assert torch.load(last_one)["age"] == 2 and capsys.readouterr().err == ""

    for part in (last_one.read_bytes()[:-30], b""):
        last_one.write_bytes(part)
        replace_cut_off(tmp_path)
        assert torch.load(last_one)["age"] == 1
        assert capsys.readouterr().err == f"{last_one} was cut off: checkpoint_best.pt takes its place\n"
    best.write_bytes(b"")  # fairseq copies to it before it does to the last one
    os.utime(older, (9, 9))
    os.utime(last_one, (8, 8))
    replace_cut_off(tmp_path)
    assert (torch.load(best)["age"], torch.load(last_one)["age"]) == (0, 1)
    assert {path.name for path in tmp_path.iterdir()} == set(names)

    for path in (older, best, last_one):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="is cut off, and no whole checkpoint stands beside it; delete it"):
        replace_cut_off(tmp_path)


@pytest.mark.parametrize("cut_off", [False, True])
def test_bitext_goes_on_from_a_whole_checkpoint(tmp_path, cut_off):
    save_dir = tmp_path / "save"
    save_dir.mkdir()
    write(tmp_path / "data" / "dict.en.txt", "")
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        torch.save({"name": name}, save_dir / name)
    if cut_off:
        write(save_dir / "checkpoint_last.pt", "PK")
    command = ["bash", "examples/bitext/train.sh", tmp_path / "data", save_dir, "no_such_arch"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode != 0 and "no_such_arch" in done.stdout
    assert ("checkpoint_best.pt takes its place" in done.stderr) == cut_off
    assert torch.load(save_dir / "checkpoint_last.pt")["name"] == f"checkpoint_{'best' if cut_off else 'last'}.pt"

"""Several ranks train one model, each with noise of its own; processes that nobody joined are stopped."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, train_in_process, train_options
from tiny_runs import assert_identical, build, rendezvous

from fairseq_g2lstm.checkpoints import read_checkpoint
from fairseq_g2lstm.distributed import check_ranks_are_joined
from fairseq_g2lstm.gates.training import read_gate_log
from fairseq_g2lstm.philox import rank_seed

# A plugin around the plugin: it keeps, rank by rank, what each training forward gets and the parameters at the end.
WATCHING_PLUGIN = """
import atexit, os
import torch
from fairseq_g2lstm import ops
from fairseq_g2lstm.criterions import G2LSTMCrossEntropyCriterion

seen = {"seeds": [], "sentences": [], "rank": 0}
models = []
forward = G2LSTMCrossEntropyCriterion.forward

def watched_forward(criterion, model, sample, reduce=True):
    if model.training:
        seen["rank"] = torch.distributed.get_rank()
        seen["sentences"].append(sample["id"].tolist())
        models[:] = [model]
    return forward(criterion, model, sample, reduce)

def watched(operator):
    def watched_operator(*inputs, seed, **more):
        if seed is not None:
            seen["seeds"].append(int(seed))
        return operator(*inputs, seed=seed, **more)
    return watched_operator

G2LSTMCrossEntropyCriterion.forward = watched_forward
ops.lstm_layer, ops.decoder = watched(ops.lstm_layer), watched(ops.decoder)

@atexit.register
def write():
    seen["model"] = {name.removeprefix("module."): value for name, value in models[0].state_dict().items()}
    torch.save(seen, os.path.join(os.environ["WATCHED"], f"rank{seen['rank']}.pt"))
"""
JOINED = ["--distributed-no-spawn", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
# The whole corpus, 400 sentences, in each update; without noise and dropout.
WHOLE = ["--gate-noise-prob", 0, "--dropout", 0, "--max-tokens", 10**6, "--no-epoch-checkpoints"]
WHOLE += ["--disable-validation", "--max-update", 10]


class Ranks:
    """What two ranks that trained together left: their records, and the log and folder of rank 0."""

    def __init__(self, data: Path, folder: Path, *options: object) -> None:
        plugin = folder / "watching_plugin"
        plugin.mkdir()
        (plugin / "__init__.py").write_text(WATCHING_PLUGIN)
        self.save_dir = folder / "checkpoints"
        given = train_options(data, self.save_dir, "g2lstm", "--user-dir", plugin, "--log-format", "json", *options)
        address = rendezvous(folder)
        given += ["--distributed-world-size", "2", "--distributed-init-method", address, *JOINED]
        command = [sys.executable, "-m", "fairseq_cli.train", *given]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WATCHED": str(folder)}
        processes, logs = [], [folder / f"rank{rank}.log" for rank in range(2)]
        try:
            for rank, log in enumerate(logs):
                with open(log, "w") as output:
                    ranked = [*command, "--distributed-rank", str(rank)]
                    processes.append(
                        subprocess.Popen(ranked, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
                    )
            codes = [process.wait(timeout=300) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
        self.records = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
        self.lines = logs[0].read_text().splitlines()

    def logged(self, tag: str) -> list[dict[str, str]]:
        """What rank 0 logs under a tag."""
        return [json.loads(line.split(f"| {tag} | ")[1]) for line in self.lines if f"| {tag} | " in line]


@pytest.fixture(scope="module")
def noisy(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Two ranks with noise in every gate, over an epoch of 15 batches, so that rank 1 lacks the last; then BLEU."""
    options = ["--gate-noise-prob", 1, "--dropout", 0, "--max-epoch", 1, "--gate-stats-interval", 1]
    options += ["--gate-log-interval", 3, "--eval-bleu", "--eval-bleu-args", '{"beam": 2}', "--eval-bleu-remove-bpe"]
    return Ranks(tiny_data, tmp_path_factory.mktemp("noisy"), *options)


@pytest.mark.slow
def test_two_ranks_train_one_model(noisy):
    rank0, rank1 = noisy.records
    assert (rank0["rank"], rank1["rank"]) == (0, 1)
    assert_identical(rank1["model"], rank0["model"])
    saved = read_checkpoint(noisy.save_dir / "checkpoint_last.pt")
    assert_identical(saved["model"], rank0["model"])
    assert saved["optimizer_history"][-1]["num_updates"] == 8
    assert len(rank1["sentences"]) == 8
    # in the last update fairseq gives rank 1 a batch that does not count
    sentences = [i for batch in rank0["sentences"] + rank1["sentences"][:7] for i in batch]
    assert sorted(sentences) == list(range(400))


@pytest.mark.slow
def test_each_rank_has_noise_of_its_own(noisy):
    # an encoder and a decoder in each of eight updates
    seeds, others = (record["seeds"] for record in noisy.records)
    assert len(seeds) == len(others) == 16
    assert len({*seeds, *others}) == 32
    # fairseq gives both ranks one generator state, which no dropout moves on here
    assert others == [int(rank_seed(torch.tensor(seed), 1)) for seed in seeds]


@pytest.mark.slow
def test_checkpoints_of_several_ranks_with_eval_bleu_load(noisy):
    checkpoint = noisy.save_dir / "checkpoint_last.pt"
    meters = torch.load(checkpoint, weights_only=False)["extra_state"]["metrics"]["valid"]
    (counts,) = (meter["sum"] for _, name, _, meter in meters if name == "_bleu_counts")
    assert counts.dtype == "float64"  # those of one process are integers, which test_checkpoints.py has
    found = read_checkpoint(checkpoint)["extra_state"]["metrics"]["valid"]
    assert [name for _, name, _, _ in found] == [name for _, name, _, _ in meters]


@pytest.mark.slow
def test_the_log_is_of_both_ranks_together(noisy):
    (epoch,), (validation,) = noisy.logged("train"), noisy.logged("valid")
    assert float(epoch["train_bsz"]) == 400 / 8
    assert float(epoch["train_gumbel_temperature"]) == float(validation["valid_gumbel_temperature"]) == 0.9
    assert float(epoch["train_gumbel_noise_prob"]) == 1.0
    for key in ("input_gates", "forget_gates"):
        assert 0 <= float(epoch[f"train_{key}_low"]) + float(epoch[f"train_{key}_high"]) <= 1
        assert 0 <= float(validation[f"valid_{key}_low"]) + float(validation[f"valid_{key}_high"]) <= 1


@pytest.mark.slow
def test_the_gates_log_is_of_rank_0_alone(noisy, tiny_data):
    records = read_gate_log(noisy.save_dir / "gates.jsonl")
    assert [record["update"] for record in records[::4]] == [0, 3, 6]  # encoder and decoder, input and forget gates
    targets = (tiny_data.parent / "train.en").read_text().splitlines()
    sentences = noisy.records[0]["sentences"]
    tokens = [sum(len(targets[i].split()) + 1 for i in sentences[update]) for update in (0, 3, 6)]
    assert [record["steps"] for record in records[2::4]] == tokens


@pytest.mark.slow
def test_two_ranks_with_half_the_batch_each_reach_the_parameters_of_one_with_the_whole(tiny_data, tmp_path):
    ranks = Ranks(tiny_data, tmp_path, *WHOLE, "--batch-size", 200)
    for mine, others in zip(*(record["sentences"] for record in ranks.records), strict=True):
        assert len(mine) == len(others) == 200
        assert {*mine, *others} == set(range(400))
    assert [line["bsz"] for line in ranks.logged("train_inner")] == ["400", "400"]
    assert_identical(ranks.records[1]["model"], ranks.records[0]["model"])

    train_in_process(train_options(tiny_data, tmp_path / "one", "g2lstm", *WHOLE, "--batch-size", 400))
    state = read_checkpoint(tmp_path / "one" / "checkpoint_last.pt")
    assert state["optimizer_history"][-1]["num_updates"] == state["extra_state"]["train_iterator"]["epoch"] - 1 == 10
    found = ranks.records[0]["model"]
    assert list(found) == list(state["model"])
    for name, weight in state["model"].items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment of the second of two processes that torchrun starts."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    yield monkeypatch


def test_processes_that_nobody_joined_are_stopped_before_a_model_is_built(torchrun, task):
    with pytest.raises(
        RuntimeError, match="torchrun started 2 processes, but fairseq has not joined them, so each would"
    ):
        build(task)


@pytest.mark.parametrize("changed", [{"WORLD_SIZE": "1"}, {"TORCHELASTIC_RUN_ID": None}, {"WORLD_SIZE": None}])
def test_one_process_and_those_of_others_are_left_alone(torchrun, changed):
    for name, value in changed.items():
        if value is None:
            torchrun.delenv(name)
        else:
            torchrun.setenv(name, value)
    check_ranks_are_joined()


def test_joined_processes_go_on(torchrun):
    torchrun.setattr(torch.distributed, "is_initialized", lambda: True)
    check_ranks_are_joined()


def run_torchrun(*command: object) -> tuple[int, str]:
    """Exit status and output of two processes under torchrun, which ends them when it is told to end."""
    options = ["--nproc-per-node", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    options += ["--local-addr", "127.0.0.1", "--max-restarts", 0, *command]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output


@pytest.mark.slow
def test_torchrun_without_gpus_stops_and_its_advice_works(tiny_data, tmp_path):
    options = train_options(tiny_data, tmp_path / "run", "g2lstm", "--max-update", 3, "--disable-validation")
    options.remove("--cpu")
    status, output = run_torchrun("-m", "fairseq_cli.train", *options)
    assert status != 0
    assert "RuntimeError: torchrun started 2 processes, but fairseq has not joined them" in output
    assert not list((tmp_path / "run").glob("*.pt"))

    advice = [
        re.search(r"--distributed-world-size .* --distributed-no-spawn", output)[0],
        re.search(r"--cpu .* legacy_ddp", output)[0],
    ]
    line = shlex.join([sys.executable, "-m", "fairseq_cli.train", *options])
    status, output = run_torchrun("--no-python", "bash", "-c", " ".join(["exec", line, *advice]))
    assert status == 0, output[-3000:]
    assert "training on 2 devices" in output
    assert read_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 3

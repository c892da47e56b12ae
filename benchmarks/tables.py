"""The results as Markdown, from what stands in results.json."""

import math
from typing import Any

from benchmarks.machine import sentence
from benchmarks.peers import PEERS, TITLES

Result = dict[str, Any]
_MET = {True: ", met", False: ", **not met**", None: ""}


def layer_markdown(result: Result) -> str:
    """A table for each pass and for TF32 off or on, and what is needed to repeat them."""
    rows = [row for row in result["rows"] if not row["axis"]]
    gates = result["settings"]["gates"]
    lines = [
        "Milliseconds: median (distance between the quartiles). "
        f"{gates['gate_type'].capitalize()} gates, temperature {gates['temperature']}, p = {gates['noise_prob']}, "
        "in training. Ratios: time of G2LSTM divided by the peer's (distance between the quartiles over the rounds).",
        "",
    ]
    for tf32 in (False, True):
        for passes in ("forward + backward", "forward"):
            chosen = [row for row in rows if row["tf32"] == tf32 and row["passes"] == passes]
            if chosen:
                lines += [f"**{passes.capitalize()}{', TF32 on' if tf32 else ''}**", "", *_layer_table(chosen), ""]
    reasons = sorted({f"{TITLES[peer]}: {reason}." for row in rows for peer, reason in row["skipped"].items()})
    lines += [f"Left out: {' '.join(reasons)}", ""] if reasons else []
    timer = f"{result['settings']['timer']}, {result['settings']['rounds']} rounds in turns."
    return "\n".join([*_unfinished(result), *lines, timer, "", sentence(result)]) + "\n"


def _unfinished(result: Result) -> list[str]:
    return [] if result["complete"] else ["**Unfinished:** the run was stopped, or goes on.", ""]


def _layer_table(rows: list[Result]) -> list[str]:
    peers = [peer for peer in PEERS if any(peer in row["times"] for row in rows)]
    compared = [peer for peer in peers if peer != "reference" and any(peer in row["ratios"] for row in rows)]
    barred = [peer for peer in compared if any(row["ratios"].get(peer, {}).get("bar") for row in rows)]
    titles = ["(T, B, I, H)", "dtype", *(TITLES[peer] for peer in peers)]
    for peer in compared:
        titles += [f"ratio to {TITLES[peer]}"] + ["bar"] * (peer in barred)
    in_one_launch = any(row.get("ratios_in_one_launch") for row in rows)
    if in_one_launch:
        titles += [f"ratio of one launch to {TITLES['torch.nn.LSTM']}", "bar"]
    lines = _head(titles, texts=2)
    for row in rows:
        cells = [sizes(row), row["dtype"], *(_milliseconds(row["times"].get(peer)) for peer in peers)]
        for peer in compared:
            found = row["ratios"].get(peer)
            cells.append(_ratio_and_spread(found))
            if peer in barred:
                cells.append(_verdict(found))
        if in_one_launch:
            found = row["ratios_in_one_launch"].get("torch.nn.LSTM")
            cells += [_ratio_and_spread(found), _verdict(found)]
        lines.append(_line(cells))
    return lines


def _ratio_and_spread(found: Result | None) -> str:
    return f"{found['ratio']:.2f} ({found['iqr_by_round']:.2f})" if found else ""


def end_to_end_markdown(result: Result) -> str:
    """A table of trainings, one of translations, and what is needed to repeat them."""
    settings = result["settings"]
    head = ["encoder's directions", "precision", "", "stock `lstm`", "`g2lstm`, gumbel", "ratio", "bar"]
    lines = [*_unfinished(result), *_head(head, texts=3)]
    for row in result["training"]:
        lines += _training_rows([row["encoder"], row["precision"]], row, ("lstm", "g2lstm"))
    same = all(row["same_batches"] for row in result["training"])
    translation, translated = result["translation"], []
    if translation is not None:
        speeds = _compared(translation["sentences/s"], "sentences_per_s", ",.1f", ("lstm", "g2lstm"))
        lines.append(_line(["of the checkpoint", "float32", "sentences/s, beam 5", *speeds]))
        translated = [
            f"Translated: {translation['sentences']:,} sentences, with a stock checkpoint of "
            f"{translation['checkpoint_updates'] or 'unknown'} updates and the same converted to `g2lstm`; "
            f"{translation['identical']:,} hypotheses are the same in both.",
            "",
        ]
    lines += [
        "",
        f"{_runs(settings['repeats'])} {_how_trained(result)} "
        f"The arms saw {_same(same)} batches, by their target tokens.",
        "",
        *translated,
        _data_and_recipe(settings),
        "",
        sentence(result),
    ]
    return "\n".join(lines) + "\n"


def language_model_markdown(result: Result) -> str:
    """A table of evaluations, one of trainings, and what is needed to repeat them."""
    settings, evaluations = result["settings"], result["evaluation"]
    head = ["units", "rows × tokens", "", "stock `lstm_lm`"]
    for title in ("`g2lstm_lm`", "`g2lstm_lm`, state carried"):
        head += [title, "ratio", "bar"]
    lines = [*_unfinished(result), "**Evaluation**", "", *_head(head, texts=3)]
    for row in evaluations:
        lines += _evaluation_rows(row)
    tokens = f"{evaluations[0]['tokens']:,}" if evaluations else "no"
    same_tokens = _same(all(row["same_tokens"] for row in evaluations))
    same_perplexity = _same(all(row["same_perplexity"] for row in evaluations))
    lines += [
        "",
        f"fairseq-eval-lm over the {tokens} tokens of the test set, tokens/s as it prints: a stock checkpoint of "
        f"{settings['checkpoint_updates']} updates and the same weights in `g2lstm_lm`, both under fairseq's "
        "`language_modeling`, which shuffles the blocks and starts each from zeros, and those weights under "
        "`g2lstm_language_modeling`, which reads the text in order and carries the state. "
        f"All scored {same_tokens} number of tokens; under fairseq's task both have {same_perplexity} perplexity.",
        "",
        "**Training**",
        "",
        *_head(["units", "rows × tokens", "precision", "", "stock `lstm_lm`", "`g2lstm_lm`, gumbel", "ratio"], texts=4),
    ]
    for row in result["training"]:
        where = [str(row["units"]), f"{row['n_rows']} × {row['block_length']}", row["precision"]]
        lines += _training_rows(where, row, ("lstm_lm", "g2lstm_lm"), bars=False)
    same = all(row["same_tokens"] for row in result["training"])
    lines += [
        "",
        f"{_runs(settings['rounds'])} {_how_trained(result)} Stock blocks are shuffled, G2-LSTM's in order with the "
        f"state carried; the arms' batches had {_same(same)} number of tokens.",
        "",
        _data_and_recipe(settings),
        "",
        " ".join(f"{units} units: `{options}`." for units, options in settings["sizes"].items()),
        "",
        sentence(result),
    ]
    return "\n".join(lines) + "\n"


def packed_markdown(result: Result) -> str:
    """A table of bytes and speeds, and what is needed to repeat them."""
    translates = result["settings"]["model"] == "g2lstm"
    decodings = result["decoding"]
    titles = ["packed", "file, bytes", "weights in memory, bytes"]
    for row in decodings:
        what = f"{row['rows']} {'sentences' if translates else 'rows'}"
        titles += [f"{'sentences' if translates else 'tokens'}/s, {what} a batch", "ratio to float32", "bar"]
        titles.append("same translations" if translates else "perplexity")
    lines = _head(titles, texts=1)
    own = result["bytes"]["float32"]
    for name, size in result["bytes"].items():
        cells = [name, *(f"{size[kind]:,} ({size[kind] / own[kind]:.2f})" for kind in ("file", "memory"))]
        for row in decodings:
            speed = row["speed"][name]
            cells.append(_median(speed, "per_s", ",.1f"))
            cells += ["", ""] if name == "float32" else _ratio(speed)
            cells.append(f"{row['same'][name]:,}" if translates else f"{row['perplexity'][name]:.2f}")
        lines.append(_line(cells))
    settings = result["settings"]
    types = ", ".join(f"{name} {size:,}" for name, size in settings["data"]["types"].items())
    by = "fairseq-generate, beam 5" if translates else f"fairseq-eval-lm in blocks of {settings['block_length']} tokens"
    lines += [
        "",
        f"{_runs(settings['rounds'])} Speeds are those that {by}, prints of the test set. The float32 checkpoint holds "
        "the optimiser's state as well. In memory integers of 4 bits take 8.",
        "",
        f"Data: {types}. " + " ".join(f"{name}: `{options}`." for name, options in settings["packings"].items()),
        "",
        sentence(result),
    ]
    return "\n".join(lines) + "\n"


def gate_log_markdown(result: Result) -> str:
    """A table of what a record of the gates takes, and what is needed to repeat it."""
    settings = result["settings"]
    usual = result["training"][0]["usual"]
    head = ["precision", "ms an update", "quotient without records", "quotient with", "a record, in updates"]
    lines = _head([*head, f"share of the time at `--gate-log-interval {usual}`"], texts=1)
    for row in result["training"]:
        quotients = (_median(row["quotients"][arm], "updates", ".3f") for arm in ("never", "recorded"))
        cells = [row["precision"], _milliseconds(row["update"]), *quotients, _median(row["record"], "updates", ".3f")]
        lines.append(_line([*cells, f"{row['share_at_usual']:.2%}"]))
    same = all(row["same_batches"] for row in result["training"])
    lines += [
        "",
        f"{_runs(settings['repeats'])} Time of updates {settings['warmup'] + 1} to {settings['updates']} of each "
        "training, from fairseq's log. The quotient is the mean time of the updates that the one arm records and the "
        "other does not over that of those between, which neither records; a record takes what the one quotient is "
        f"above the other. The arms saw {_same(same)} batches, by their target tokens.",
        "",
        _data_and_recipe(settings),
        "",
        sentence(result),
    ]
    return "\n".join(lines) + "\n"


def product_markdown(result: Result) -> str:
    """A table of speeds and errors, and what is needed to repeat them."""
    settings = result["settings"]
    names = {"g2lstm": "`g2lstm::matmul`", "torch": "torch"}
    titles = ["rows × depth × columns", *(f"{title}, GFLOP/s" for title in names.values()), "ratio of times"]
    lines = _head([*titles, *(f"{title}, error" for title in names.values())], texts=1)
    for row in result["rows"]:
        operations = 2 * math.prod(row["sizes"].values())
        cells = [" × ".join(f"{size:,}" for size in row["sizes"].values())]
        cells += [f"{_three(operations / row['times'][name]['median_s'] / 1e9)}" for name in names]
        cells.append(f"{row['ratio']:.2f} ({row['iqr_by_round']:.2f})")
        lines.append(_line([*cells, *(f"{row['errors'][name]:.1e}" for name in names)]))
    lines += [
        "",
        f"float32 in torch's precision `{settings['precision']}`, normal numbers; medians of {settings['rounds']} "
        "rounds in turns (distance between the quartiles over the rounds). The error is the root mean square of the "
        "differences from the product in float64, relative.",
        "",
        sentence(result),
    ]
    return "\n".join(lines) + "\n"


def sizes(row: Result) -> str:
    """(T, B, I, H) of a row."""
    return f"({', '.join(str(size) for size in row['shape'].values())})"


def _head(titles: list[str], texts: int) -> list[str]:
    return [_line(titles), _line(["---"] * texts + ["---:"] * (len(titles) - texts))]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _milliseconds(time: Result | None) -> str:
    return "" if time is None else f"{_three(1000 * time['median_s'])} ({_three(1000 * time['iqr_s'])})"


def _three(value: float) -> str:
    """Three digits or more, without an exponent."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:,.{min(3, max(0, 2 - exponent))}f}"


def _evaluation_rows(row: Result) -> list[str]:
    stock, *ours = row["perplexity"]
    where = [str(row["units"]), f"{row['n_rows']} × {row['block_length']}"]
    lines = []
    for name, title, unit, digits in (
        ("tokens/s", "tokens/s", "tokens_per_s", ",.0f"),
        ("process", "whole process, s", "s", ",.1f"),
    ):
        found = row[name]
        cells = [*where, title, _median(found[stock], unit, digits)]
        for arm in ours:
            cells += [_median(found[arm], unit, digits), *_ratio(found["ratios"][arm])]
        lines.append(_line(cells))
    cells = [*where, "perplexity", f"{row['perplexity'][stock]:,.2f}"]
    for arm in ours:
        cells += [f"{row['perplexity'][arm]:,.2f}", "", ""]
    return [*lines, _line(cells)]


def _training_rows(where: list[str], row: Result, arms: tuple[str, str], bars: bool = True) -> list[str]:
    memory = {**row["peak memory"]}
    memory |= {arm: _in_mebibytes(memory[arm]) for arm in arms}
    rows = [
        [*where, "target tokens/s", *_compared(row["tokens/s"], "tokens_per_s", ",.0f", arms)],
        [*where, "peak memory, MiB", *_compared(memory, "bytes", ",.0f", arms)],
    ]
    return [_line(cells if bars else cells[:-1]) for cells in rows]


def _compared(found: Result, unit: str, digits: str, arms: tuple[str, str]) -> list[str]:
    return [*(_median(found[arm], unit, digits) for arm in arms), *_ratio(found)]


def _median(spread: Result, unit: str, digits: str) -> str:
    return f"{spread[f'median_{unit}']:{digits}} ({spread[f'iqr_{unit}']:{digits}})"


def _ratio(found: Result) -> list[str]:
    return [f"{found['ratio']:.2f} ({found['iqr_by_repeat']:.2f})", _verdict(found)]


def _verdict(found: Result | None) -> str:
    return f"{found['bar']}{_MET[found['met']]}" if found and found["bar"] else ""


def _in_mebibytes(spread: Result) -> Result:
    return {key: value / 2**20 if isinstance(value, float) else value for key, value in spread.items()}


def _same(same: bool) -> str:
    return "the same" if same else "**not the same**"


def _runs(number: int) -> str:
    return f"Median of {number} runs of each arm in turns (distance between the quartiles)."


def _how_trained(result: Result) -> str:
    settings = result["settings"]
    counted = f"updates {settings['warmup'] + 1} to {settings['updates']} of each training"
    return f"Speed of training over {counted}, from fairseq's log; memory is {_kind_of_memory(result)}."


def _data_and_recipe(settings: Result) -> str:
    types = ", ".join(f"{name} {size:,}" for name, size in settings["data"]["types"].items())
    return f"Data: {types}. Recipe: `{settings['recipe']}`."


def _kind_of_memory(result: Result) -> str:
    return "torch's largest allocation on the GPU" if result["machine"]["gpu"] else "the peak resident set"

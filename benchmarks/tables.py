"""The results as Markdown, from what stands in results.json."""

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
    return "\n".join([*lines, timer, "", sentence(result)]) + "\n"


def _layer_table(rows: list[Result]) -> list[str]:
    peers = [peer for peer in PEERS if any(peer in row["times"] for row in rows)]
    compared = [peer for peer in peers if peer != "reference" and any(peer in row["ratios"] for row in rows)]
    barred = [peer for peer in compared if any(row["ratios"].get(peer, {}).get("bar") for row in rows)]
    titles = ["(T, B, I, H)", "dtype", *(TITLES[peer] for peer in peers)]
    for peer in compared:
        titles += [f"ratio to {TITLES[peer]}"] + ["bar"] * (peer in barred)
    lines = _head(titles, texts=2)
    for row in rows:
        cells = [sizes(row), row["dtype"], *(_milliseconds(row["times"].get(peer)) for peer in peers)]
        for peer in compared:
            found = row["ratios"].get(peer)
            cells.append(f"{found['ratio']:.2f} ({found['iqr_by_round']:.2f})" if found else "")
            if peer in barred:
                cells.append(_verdict(found))
        lines.append(_line(cells))
    return lines


def end_to_end_markdown(result: Result) -> str:
    """A table of trainings, one of translations, and what is needed to repeat them."""
    settings = result["settings"]
    head = ["encoder's directions", "precision", "", "stock `lstm`", "`g2lstm`, gumbel", "ratio", "bar"]
    lines = _head(head, texts=3)
    for row in result["training"]:
        where = [row["encoder"], row["precision"]]
        lines.append(_line([*where, "target tokens/s", *_compared(row["tokens/s"], "tokens_per_s", ",.0f")]))
        memory = {**row["peak memory"]}
        memory |= {arm: _in_mebibytes(memory[arm]) for arm in ("lstm", "g2lstm")}
        lines.append(_line([*where, "peak memory, MiB", *_compared(memory, "bytes", ",.0f")]))
    same = all(row["same_batches"] for row in result["training"])
    translation = result["translation"]
    speeds = _compared(translation["sentences/s"], "sentences_per_s", ",.1f")
    lines.append(_line(["of the checkpoint", "float32", "sentences/s, beam 5", *speeds]))
    types = ", ".join(f"{name} {size:,}" for name, size in settings["data"]["types"].items())
    counted = f"updates {settings['warmup'] + 1} to {settings['updates']} of each training"
    lines += [
        "",
        f"Median of {settings['repeats']} runs of each arm in turns (distance between the quartiles). Speed of "
        f"training over {counted}, from fairseq's log; memory is {_kind_of_memory(result)}. "
        f"The arms saw {'the same' if same else '**not the same**'} batches, by their target tokens.",
        "",
        f"Translated: {translation['sentences']:,} sentences, with a stock checkpoint and the same converted to "
        f"`g2lstm`; {translation['identical']:,} hypotheses are the same in both.",
        "",
        f"Data: {types}. Recipe: `{settings['recipe']}`.",
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


def _compared(found: Result, unit: str, digits: str) -> list[str]:
    arms = [
        f"{found[arm][f'median_{unit}']:{digits}} ({found[arm][f'iqr_{unit}']:{digits}})" for arm in ("lstm", "g2lstm")
    ]
    return [*arms, f"{found['ratio']:.2f} ({found['iqr_by_repeat']:.2f})", _verdict(found)]


def _verdict(found: Result | None) -> str:
    return f"{found['bar']}{_MET[found['met']]}" if found and found["bar"] else ""


def _in_mebibytes(spread: Result) -> Result:
    return {key: value / 2**20 if isinstance(value, float) else value for key, value in spread.items()}


def _kind_of_memory(result: Result) -> str:
    return "torch's largest allocation on the GPU" if result["machine"]["gpu"] else "the peak resident set"

"""Writes the tables and the picture of docs/trials.md from the committed trials of single tasks.

Run: python docs/generate_trials.py
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bits_results import paired_change

from himalaya_adapter.report import paper
from himalaya_adapter.report.palette import BOUND, OWN

DOCS = Path(__file__).parent
FOLDER = DOCS.parent / "benchmarks" / "results" / "single_task"
TRIALS, EXPLORATIONS = FOLDER / "trials.jsonl", FOLDER / "explorations.jsonl"
WARM_STARTS = FOLDER / "warm_starts.jsonl"
PAGE, PICTURE = DOCS / "trials.md", DOCS / "images" / "nll_against_bytes.png"
START, END = "<!-- generated: {} -->\n", "<!-- end -->"
# Fields of a trial that name what is compared; the others are the task, the seed and what was measured.
SETTING = (
    *("update", "lr", "atoms", "active", "bound", "radius", "exponent", "rank", "modules", "anchor", "gain"),
    *("codes", "average", "loop_bits", "backbone"),
)
NAMES = {
    "anchored": "HIMALAYA",
    "hashed": "HIMALAYA in the weights",
    "loreft": "LoReFT",
    "lora": "LoRA",
    "unilora": "Uni-LoRA",
    "vera": "VeRA",
    "vblora": "VB-LoRA",
    "tinylora": "TinyLoRA",
    "strict": "HIMALAYA 0.1",
}
# With as many numbers as the small methods of PEFT that were tried.
TWELVE = {"update": "anchored", "bound": 2.0, "radius": 1.0, "exponent": 0.5, "atoms": 12, "active": 3, "lr": 0.003}
# What the explorations vary: HIMALAYA's forms after a decoder layer, before it had channels' sizes and with them, and
# in the weights.
ANCHORED = {"update": "anchored", "bound": 2.0, "radius": 1.0, "lr": 0.003}
STARTS = {
    "HIMALAYA without sizes": ANCHORED | {"codes": "balanced", "average": None, "exponent": None},
    "HIMALAYA": ANCHORED | {"exponent": 0.5, "backbone": None},
    "HIMALAYA on gemma3-270m": ANCHORED | {"exponent": 0.5, "backbone": "gemma3-270m"},
    "HIMALAYA in the weights": {
        "update": "hashed",
        "rank": 1,
        "radius": 1.0,
        "lr": 0.003,
        "anchor": 1.0,
        "gain": 24.0,
    },
}
GROUP, GROUP_BYTES = 32, 4  # numbers that share a scale and a minimum in half precision
KEEPS = 0.02  # of NLL: the fewest bits that lose no more
BITS = (2, 3, 4)
FEWEST_SHOWN = 6  # tasks and seeds of a method in the picture
MARKS = "oXsP^D*v><phd8"
Pair = tuple[str, int]


@dataclass(frozen=True)
class Setting:
    """One form of an update at one rate, on every task and seed on which it was tried."""

    fields: Mapping[str, Any]
    trials: Mapping[Pair, Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The method and its size."""
        method, one = NAMES[self.fields["update"]], self.fields
        if one["update"] == "anchored":
            units = {0.0: ", channels alike", 1.0: ", whole sizes"}.get(one["exponent"], "")
            return f"{method}, {one['atoms']} atoms{units}"
        if one["update"] == "hashed":
            return f"{method}, {one['atoms']} atoms" + (f", rank {one['rank']}" if one["rank"] > 1 else "")
        where = ", all linear modules" if one["update"] == "lora" and one["modules"].count("+") > 1 else ""
        return f"{method} r={one['rank']}{where}" if one["update"] in ("loreft", "lora", "unilora", "vera") else method

    @property
    def numbers(self) -> int:
        """Trained numbers of a task."""
        return int(next(iter(self.trials.values()))["numbers"])

    def mean(self, key: str, pairs: Sequence[Pair], bits: int | None = None) -> float:
        """The mean of ``score`` or ``nll`` over pairs of a task and a seed, rounded to so many bits if given."""
        rows = [self.trials[pair] if bits is None else self.trials[pair][f"{bits}_bits"] for pair in pairs]
        return fmean(row[key] for row in rows)

    def rounded(self, pairs: Sequence[Pair]) -> list[int]:
        """The bits to which all of these trials were rounded, too."""
        return [bits for bits in BITS if all(f"{bits}_bits" in self.trials[pair] for pair in pairs)]

    def bits_kept(self, pairs: Sequence[Pair]) -> int:
        """The fewest bits at which the loss stays; 16 where none was tried or none is enough."""
        kept = [pair for pair in pairs if "3_bits" in self.trials[pair]]
        if not kept:
            return 16
        whole = self.mean("nll", kept)
        return next((b for b in self.rounded(kept) if self.mean("nll", kept, b) <= whole + KEEPS), 16)


def stored_bytes(numbers: int, bits: int) -> int:
    """Bytes of a task: its codes, and a scale and a minimum per group below 16 bits."""
    return numbers * bits // 8 + (-(-numbers // GROUP) * GROUP_BYTES if bits < 16 else 0)


def settings(path: Path = TRIALS) -> list[Setting]:
    """All settings, in the order in which they were first tried."""
    found: dict[str, dict[Pair, Mapping[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(json.dumps([row.get(key) for key in SETTING]), {})[row["task"], row["seed"]] = row
    return [Setting({key: next(iter(one.values())).get(key) for key in SETTING}, one) for one in found.values()]


def having(fields: Mapping[str, Any], path: Path = TRIALS) -> Setting:
    """The setting with these fields on the most tasks and seeds."""
    fitting = [one for one in settings(path) if all(one.fields[key] == value for key, value in fields.items())]
    return max(fitting, key=lambda one: len(one.trials))


def reference() -> Setting:
    """HIMALAYA of 12 atoms, beside which all others are shown."""
    return having(TWELVE)


def compared() -> list[Setting]:
    """The methods' table: of each the rate that was tried most often, and of such ones the better."""
    best: dict[str, Setting] = {}
    for one in settings():
        there = best.get(one.name)
        best[one.name] = one if there is None or _is_better(one, there) else there
    return sorted(best.values(), key=lambda one: (one.fields["update"] != "anchored", -len(one.trials), one.numbers))


def _is_better(one: Setting, other: Setting) -> bool:
    if len(one.trials) != len(other.trials):
        return len(one.trials) > len(other.trials)
    common = sorted(one.trials.keys() & other.trials.keys())
    return bool(common) and one.mean("nll", common) < other.mean("nll", common)


def methods() -> str:
    """Each method beside HIMALAYA of 12 atoms on the same tasks and seeds."""
    own, lines = reference(), []
    lines.append(
        "| update | rate | numbers | task × seed | score | NLL | score − HIMALAYA | NLL − HIMALAYA | bits | bytes |"
    )
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for one in compared():
        pairs = sorted(one.trials.keys() & own.trials.keys())
        if len(pairs) > 1:
            bits = one.bits_kept(pairs)
            gap = paired_change(*([setting.trials[pair] for pair in pairs] for setting in (one, own)))
            gap = "" if one.fields == own.fields else gap
            lines.append(
                f"| {one.name} | {one.fields['lr']:g} | {one.numbers:,} | {len(pairs)} "
                f"| {one.mean('score', pairs):.3f} | {one.mean('nll', pairs):.3f} | {gap} "
                f"| {one.mean('nll', pairs) - own.mean('nll', pairs):+.3f} "
                f"| {bits} | {stored_bytes(one.numbers, bits):,} |"
            )
    return "\n".join(lines) + "\n"


def variants() -> str:
    """What was varied in HIMALAYA's update, beside its form on the same tasks and seeds: two trials at least."""
    lines = ["| form | changed | task × seed | score − form | NLL − form |", "|---|---|---|---|---|"]
    for form, fields in STARTS.items():
        own = having(fields, EXPLORATIONS)
        for one in settings(EXPLORATIONS):
            changed = {key: one.fields[key] for key in SETTING if one.fields[key] != own.fields[key]}
            pairs = sorted(one.trials.keys() & own.trials.keys())
            same = all(one.fields[key] == own.fields[key] for key in ("update", "backbone"))
            has_sizes = [setting.fields["exponent"] is not None for setting in (one, own)]
            if same and has_sizes[0] == has_sizes[1] and changed and len(pairs) > 1:
                told = ", ".join(f"{key} {_word(value)}" for key, value in changed.items())
                gap = [one.mean(key, pairs) - own.mean(key, pairs) for key in ("score", "nll")]
                lines.append(f"| {form} | {told} | {len(pairs)} | {gap[0]:+.3f} | {gap[1]:+.3f} |")
    return "\n".join(lines) + "\n"


def _word(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def warm_starts() -> str:
    """Tasks that start from the atoms of another, each beside the same task from none."""
    cold = reference().trials
    rows = [json.loads(line) for line in WARM_STARTS.read_text(encoding="utf-8").splitlines()]
    pairs = [(row, cold[row["task"], row["seed"]]) for row in rows]
    lines = ["| task | starts from | score | NLL | score − from none | NLL − from none |", "|---|---|---|---|---|---|"]
    for warm, alone in pairs:
        gaps = [f"{warm[key] - alone[key]:+.3f}" for key in ("score", "nll")]
        lines.append(
            f"| {warm['task']} | {warm['start']} | {warm['score']:.3f} | {warm['nll']:.3f} | {' | '.join(gaps)} |"
        )
    change = paired_change(*zip(*pairs, strict=True))
    loss = fmean(warm["nll"] - alone["nll"] for warm, alone in pairs)
    return "\n".join([*lines, f"| mean | | | | {change} | {loss:+.3f} |"]) + "\n"


TABLES = {"methods": methods, "variants": variants, "warm-starts": warm_starts}


def points() -> list[tuple[str, int, float]]:
    """Name, bytes at the fewest bits that keep the loss, and NLL less HIMALAYA's on the same tasks and seeds."""
    own, found = reference(), []
    for one in compared():
        pairs = sorted(one.trials.keys() & own.trials.keys())
        if len(pairs) >= FEWEST_SHOWN:
            size = stored_bytes(one.numbers, one.bits_kept(pairs))
            found.append((one.name, size, one.mean("nll", pairs) - own.mean("nll", pairs)))
    return found


def shown() -> str:
    """A hash of what the picture shows, which its file carries."""
    return hashlib.sha256(json.dumps(points()).encode()).hexdigest()


def draw() -> None:
    """Write the picture: loss against bytes, a mark a method."""
    with paper.sheet(4.2) as figure:
        axes = figure.subplots()
        for mark, (name, size, gap) in zip(MARKS, sorted(points(), key=lambda point: -point[2]), strict=False):
            color = OWN if name.startswith("HIMALAYA") else BOUND
            axes.scatter([size], [gap], s=60, color=color, marker=mark, label=name, zorder=3)
        axes.set_xscale("log")
        axes.axhline(0, color=axes.spines["bottom"].get_edgecolor(), linewidth=1.2)
        axes.legend(loc="upper right")  # from the highest to the lowest
        axes.margins(x=0.1, y=0.1)
        x = "bytes of a task, at the fewest bits that keep its loss"
        axes.set(xlabel=x, ylabel="NLL less HIMALAYA's (lower is better)")
    figure.savefig(PICTURE, metadata={"Description": shown()})


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for table, made in TABLES.items():
        before, rest = text.split(START.format(table))
        text = before + START.format(table) + made() + END + rest.split(END, 1)[1]
    PAGE.write_text(text, encoding="utf-8")
    draw()

"""The KD-tree's exact nearest-neighbour search against a scan, as ratios measured in one process on one thread.

The scan is the fastest that PyTorch offers: `torch.cdist` by matrix product in 32 bits, then argmin. The tree is timed
with its boxes at hand (keys at rest) and with their computation (keys that move between searches, as in training).

Run: python benchmarks/kd_tree.py [--seconds 0.1]
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch

from himalaya_adapter.methods.kd_tree import KDTree
from himalaya_adapter.storage import write_json

RESULT = Path(__file__).parent / "results" / "kd_tree.json"
ATOMS = (16, 64, 256, 1_000, 10_000, 100_000)
DIMENSIONS = (6, 12)
QUERIES = (1, 256)
FANOUTS = (4, 8, 16)
LEAF_SIZE = 4
FEWEST_ROUNDS, MOST_ROUNDS = 3, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.1, help="time for one row of the table")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print("time of a scan / time of the tree: above 1 the tree is faster (median, quartiles)")
    print(
        f"{'keys':9} {'p':>2} {'atoms':>6} {'queries':>7} {'fanout':>6} {'scan ms':>8}  boxes at hand      keys moved"
    )
    rows = []
    for layout in ("clustered", "uniform"):
        for dimensions in DIMENSIONS:
            for atoms in ATOMS:
                keys, targets = _keys_and_queries(layout, atoms, dimensions)
                for fanout in FANOUTS:
                    tree = KDTree(atoms, dimensions, fanout, LEAF_SIZE)
                    tree.build(keys)
                    for count in QUERIES:
                        case = {"keys": layout, "dimensions": dimensions, "atoms": atoms, "queries": count}
                        rows.append(case | {"fanout": fanout} | _compare(tree, targets, count, keys, seconds))
                        _print(rows[-1])
    verdicts = _verdicts(rows)
    print("\n".join(verdicts))
    environment = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "cpu_seconds": round(time.process_time(), 1),
    }
    write_json(
        RESULT, {"environment": environment, "leaf_size": LEAF_SIZE, "where_the_tree_pays": verdicts, "rows": rows}
    )


def _keys_and_queries(layout: str, atoms: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform in a cube, or clusters of about 16 as trained atoms form them; the queries are drawn alike."""
    generator = torch.Generator().manual_seed(0)
    number = atoms + max(QUERIES)
    if layout == "uniform":
        points = torch.rand(number, dimensions, generator=generator)
    else:
        centres = torch.randn(max(2, atoms // 16), dimensions, generator=generator)
        points = centres[torch.randint(0, len(centres), (number,), generator=generator)]
        points = points + 0.1 * torch.randn(number, dimensions, generator=generator)
    return points[:atoms], points[atoms:]


def _compare(
    tree: KDTree, targets: torch.Tensor, count: int, keys: torch.Tensor, seconds: float
) -> dict[str, float | list[float]]:
    """Interleaved, in seconds of this thread: other processes hardly count."""
    bounds = tree.bounds(keys)
    ways = {
        "scan": lambda queries: torch.cdist(queries, keys, compute_mode="use_mm_for_euclid_dist").argmin(1),
        "at_hand": lambda queries: tree.nearest(queries, keys, bounds),
        "moved": lambda queries: tree.nearest(queries, keys),
    }
    exact = torch.cdist(targets.double(), keys.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    if not torch.equal(tree.nearest(targets[:count], keys), exact[:count]):  # a warm-up too
        raise AssertionError("the tree and the scan disagree")
    times: dict[str, list[float]] = {name: [] for name in ways}
    end, rounds = time.thread_time() + seconds, 0
    while rounds < FEWEST_ROUNDS or (rounds < MOST_ROUNDS and time.thread_time() < end):
        queries = targets.roll(-rounds, dims=0)[:count]  # one query: another; 256: all of them, in another order
        for name, way in ways.items():
            started = time.thread_time()
            way(queries)
            times[name].append(time.thread_time() - started)
        rounds += 1
    return {
        "scan_ms": round(1e3 * statistics.median(times["scan"]), 4),
        "speedup_boxes_at_hand": _quartiles(times["scan"], times["at_hand"]),
        "speedup_keys_moved": _quartiles(times["scan"], times["moved"]),
        "rounds": rounds,
    }


def _quartiles(scan: list[float], tree: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the scan's time over the tree's, round by round."""
    ratios = [theirs / ours for theirs, ours in zip(scan, tree, strict=True)]
    return [float(f"{value:.3g}") for value in statistics.quantiles(ratios, n=4, method="inclusive")]


def _print(row: dict) -> None:
    cells = [
        f"{middle:5.2f} ({low:.2f}-{high:.2f})"
        for low, middle, high in (row["speedup_boxes_at_hand"], row["speedup_keys_moved"])
    ]
    print(
        f"{row['keys']:9} {row['dimensions']:2} {row['atoms']:6} {row['queries']:7} {row['fanout']:6} "
        f"{row['scan_ms']:8.3f}  {cells[0]:18} {cells[1]}",
        flush=True,
    )


def _verdicts(rows: list[dict]) -> list[str]:
    """For each kind of load: from how many atoms on some fanout beats the scan, by its lower quartile."""
    verdicts = []
    for layout in ("clustered", "uniform"):
        for dimensions in DIMENSIONS:
            for count in QUERIES:
                for ratio, state in (("speedup_boxes_at_hand", "boxes at hand"), ("speedup_keys_moved", "keys moved")):
                    wins = {
                        row["atoms"]: row["fanout"]
                        for row in sorted(rows, key=lambda row: row[ratio][1])
                        if (row["keys"], row["dimensions"], row["queries"]) == (layout, dimensions, count)
                        and row[ratio][0] > 1
                    }
                    pays = f"pays from {min(wins)} atoms (fanout {wins[min(wins)]})" if wins else "never pays"
                    verdicts.append(f"{layout}, p={dimensions}, {count} queries, {state}: {pays}")
    return verdicts


def _cpu() -> str:
    """The processor's name where Linux tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()

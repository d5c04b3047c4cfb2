"""What a run's adapter costs, as tables for a terminal."""

from collections.abc import Iterable

from rich.table import Column, Table

from himalaya_adapter.budget import BYTES_PER_MB, TOKENS, Budget, Work
from himalaya_adapter.experiments.run_config import RunConfig
from himalaya_adapter.methods.construction import run_method
from himalaya_adapter.methods.himalaya import HimalayaConfig
from himalaya_adapter.methods.himalaya.config import MOST_ACTIVE_ATOMS
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig


def budget_tables(run: RunConfig, budget: Budget, work: Work) -> list[Table]:
    """The bytes by part, and everything else that is counted beside its bound."""
    return [_bytes_table(run, budget), _bounds_table(run, budget, work)]


def _bytes_table(run: RunConfig, budget: Budget) -> Table:
    sizes = (budget.stored, budget.released or {})
    columns = [Column(name, justify="right") for name in ("training file", "release file")]
    table = Table("part", *columns, title=f"{run.run_id}: stored bytes on {run.model.backbone.name}")
    parts = sorted({*sizes[0], *sizes[1]}, key=lambda part: (-budget.stored.get(part, 0), part))
    for part in parts:
        table.add_row(part, *(f"{of_file[part]:,}" if part in of_file else "" for of_file in sizes))
    table.add_section()
    table.add_row("total", *(f"{sum(of_file.values()):,}" if of_file else "" for of_file in sizes))
    return table


def _bounds_table(run: RunConfig, budget: Budget, work: Work) -> Table:
    table = Table("what", "counted", "bound", title=f"{run.run_id}: what the adapter costs")
    limit = run.model.adapter.total_parameter_budget_mb
    allowed = f"{limit:g} MB" if limit is not None else ""
    table.add_row("training file", _megabytes(budget.stored.values()), allowed)
    if budget.released is not None:
        table.add_row("release file", _megabytes(budget.released.values()), "")
    table.add_row("trainable parameters", f"{sum(budget.trainable.values()):,}", "")
    for part, count in budget.trainable.items():
        table.add_row(f"  {part}", f"{count:,}", "")
    config = run_method(run)
    if isinstance(config, HimalayaStrictConfig):
        table.add_row("router parameters, frozen ones too", f"{budget.router:,}", f"{config.hidden_params:,}")
        table.add_row("active atoms of a token, at most", f"{config.expected_active_atoms}", "")
    if isinstance(config, HimalayaConfig):
        table.add_row("active atoms of a layer, at most", f"{config.active_atoms}", f"{MOST_ACTIVE_ATOMS}")
        fit = min(config.max_tasks, config.elastic_atoms // config.atoms_per_task)
        table.add_row("tasks that fit without sharing or eviction", f"{fit}", "")
    table.add_row(f"FLOPs of matrix products, bare ({TOKENS} tokens)", f"{work.bare.products:.4g}", "")
    if work.adapted is None:
        table.add_row("FLOPs of matrix products, added", "depend on the weights", "")
    else:
        table.add_row("FLOPs of matrix products, added", f"{work.overhead:.3%}", "")
        table.add_row("numbers touched by other operations, added", f"{work.element_overhead:.3%} of the FLOPs", "")
    return table


def _megabytes(sizes: Iterable[int]) -> str:
    return f"{sum(sizes) / BYTES_PER_MB:.3f} MB"

"""``himalaya budget``."""

from himalaya_adapter.commands import Overrides


def command(overrides: Overrides) -> None:
    """Bytes, parameters and operations of a run's adapter; no weights needed."""
    from rich.console import Console

    from himalaya_adapter.budget import check_size, count_budget
    from himalaya_adapter.experiments import compose_run
    from himalaya_adapter.experiments.validation import check_run
    from himalaya_adapter.report.budget_tables import budget_tables

    run = compose_run(overrides).run
    check_run(run)
    budget = count_budget(run)
    for table in budget_tables(run, budget):
        Console(markup=False, emoji=False).print(table)
    if run.model.adapter.total_parameter_budget_mb is not None:
        check_size(budget.stored, run.model.adapter.total_parameter_budget_mb)

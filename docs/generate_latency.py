"""The page of measured latencies: latency-tables.md of the site, from the committed measurements."""

from pathlib import Path

from himalaya_adapter.deploy import latency_tables as tables
from himalaya_adapter.storage import read_json

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "latency"
ABOUT = """\
# Latency in ONNX Runtime

The whole `smollm2-135m` is measured with **today's update** (graph *adapted*). The layer of Llama-2-7B is of
**version 0.1's update**, with two forms of its operator. *base again* is the graph without the adapter, opened
twice: its overhead is the error of the measurement.
[Deployment](deployment.md) says how `himalaya latency` measures.
"""


def page() -> str:
    """Of each measurement the overheads, and where the time of the last graph goes in decoding."""
    return "\n".join([ABOUT, *map(_section, sorted(RESULTS.glob("*.json")))])


def _section(path: Path) -> str:
    result = read_json(path)
    shown = [entry for entry in result["measurements"] if (entry["phase"], entry["precision"]) == ("decode", "fp32")]
    parts = [
        f"## {path.stem}\n",
        f"{result['subject']}. Measured on: {tables.device_line(result)}.\n",
        tables.markdown(tables.OVERHEAD_HEADER, tables.overhead_rows(result)),
        f"Where the time goes in decoding, graph `{result['graphs'][-1]}`:\n",
        tables.markdown(
            tables.OPERATOR_HEADER, tables.operator_rows(result | {"measurements": shown}, result["graphs"][-1])
        ),
    ]
    return "\n".join(parts)

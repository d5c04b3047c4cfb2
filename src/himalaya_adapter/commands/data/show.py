"""``himalaya data show``."""

EXAMPLES = 3


def command(stream: str, task: str) -> None:
    """The card of one task: its source, licence, template, splits and examples."""
    from collections import Counter

    from himalaya_adapter.evaluation.text_metrics import metric_by_name
    from himalaya_adapter.streams.catalogue import load_task, origin_of, read_definition

    loaded = load_task(stream, task)
    spec = loaded.spec
    metric_by_name(spec.metric)  # a run would refuse an unknown one
    origin, licence = origin_of(spec, read_definition(stream))
    lines = [
        f"{spec.name}: {spec.description}",
        f"kind {spec.kind}, language {spec.language}, metric {spec.metric}",
        f"source {origin}",
        f"licence {licence}",
        f"template {spec.template!r} -> {spec.target!r}",
    ]
    for split, digest in loaded.hashes.items():
        counts = Counter(item.target for item in loaded.split(split))
        labels = f" ({', '.join(f'{label} {counts[label]}' for label in spec.labels)})" if spec.labels else ""
        lines.append(f"{split}: {len(loaded.split(split))} items, sha256 {digest[:16]}{labels}")
    lines += [f"left out: {count} items, {reason}" for reason, count in loaded.skipped.items()]
    lines += [f"example: {item.prompt!r} -> {item.target!r}" for item in loaded.train[:EXAMPLES]]
    print("\n".join(lines))

"""``himalaya data show``."""


def command(stream: str, task: str) -> None:
    """The card of one task: its source, licence, template, splits and examples."""
    from himalaya_adapter.evaluation.text_metrics import metric_by_name
    from himalaya_adapter.streams.catalogue import task_card

    card = task_card(stream, task)
    spec = card.task.spec
    metric_by_name(spec.metric)  # a run would refuse an unknown one
    lines = [
        f"{spec.name}: {spec.description}",
        f"kind {spec.kind}, language {spec.language}, metric {spec.metric}",
        f"source {card.origin}",
        f"licence {card.licence}",
        f"template {spec.template!r} -> {spec.target!r}",
    ]
    for split, digest in card.task.hashes.items():
        counts = ", ".join(f"{label} {count}" for label, count in card.label_counts.get(split, {}).items())
        labels = f" ({counts})" if spec.labels else ""
        lines.append(f"{split}: {len(card.task.split(split))} items, sha256 {digest[:16]}{labels}")
    lines += [f"left out: {count} items, {reason}" for reason, count in card.skipped.items()]
    lines += [f"example: {item.prompt!r} -> {item.target!r}" for item in card.examples]
    print("\n".join(lines))

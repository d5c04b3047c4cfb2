"""Would hidden states of the frozen model tell foreign prompts better than its input embeddings do?

Some tasks of package_stream_25 are learnt, the others are foreign. Prompts are pooled after some decoder layers of the
frozen model, and several distances are tried. A distance is judged by the share of foreign prompts that lie outside of
the limit that keeps 95 % of the learnt tasks' prompts: a limit for each cell, chosen on the validation items, so this
is more than one fixed limit can reach. The test items are what is reported.

Run: python benchmarks/prompt_layers.py   (writes benchmarks/results/prompt_layers.json; hidden states are kept in
outputs/prompt_layers/, so a second run only measures distances)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from unknown_prompts import BACKBONE, CHOICES, STREAM, TEMPLATES, share

from himalaya_adapter.backbones import load_backbone
from himalaya_adapter.methods.prompt_memory import DECAY
from himalaya_adapter.storage import write_json
from himalaya_adapter.streams import Limits, Task, load_stream
from himalaya_adapter.streams.catalogue import read_definition

RESULTS = Path(__file__).with_name("results") / "prompt_layers.json"
KEPT = Path("outputs/prompt_layers")
COUNTS = {"five": (20, 10), "all": (60, 30)}  # training items of a task, and validation or test items
CHARACTERS, TOKENS = 170, 64  # of a prompt's contents, and of a prompt
KINDS = {"five": "five tasks share one", "all": "all tasks share one"}
LAYERS = (0, 4, 8, 12)  # how many decoder layers come before; 0: the input embeddings
POOLS = ("mean", "end")
MEAN, BOTH = ("mean",), ("mean", "end")
FEATURES = ((0, MEAN), (4, MEAN), (8, MEAN), (12, MEAN), (0, BOTH), (12, BOTH))
CELLS = ((2, None), (12, 10), (12, None))  # tasks learnt, and prompts of each; None: all training items
PROJECTIONS = 128
RIDGE = 0.3  # added to the variance of every feature, in units of the mean variance within tasks
OWN_SHARE = 0.9  # of a task's own covariance, beside that of all learnt tasks
# Tasks whose contents are of the same kind: messages of interfaces in English, texts of one manual.
KIN = ({"interface_german", "interface_swahili", "interface_finnish"}, {"cloud_command", "example_title"})
BATCH = 16
SPLITS = ("train", "validation", "test")
Found = dict[str, Tensor]
Distances = Callable[[Tensor], Tensor]  # of prompts to each task, (n, tasks)


def main() -> None:
    torch.set_num_threads(1)
    names = [task.name for task in read_definition(STREAM).tasks]
    rows = []
    for kind, (train, _) in COUNTS.items():
        found = kept(kind)
        for layer, pools in FEATURES:
            pooled = found[f"L{layer}"][:, [POOLS.index(pool) for pool in pools]]
            features = projected(pooled.flatten(1))
            for statistic, fit in STATISTICS.items():
                for learnt, prompts in CELLS:
                    of = {"templates": KINDS[kind], "layer": layer, "pools": " + ".join(pools), "statistic": statistic}
                    cell = shares(found, features, fit, names, learnt, prompts or train)
                    rows.append(of | {"learnt": learnt, "prompts": prompts or train} | cell)
                    print(rows[-1], flush=True)
    about = {"stream": STREAM, "backbone": BACKBONE, "choices": CHOICES, "projections": PROJECTIONS, "ridge": RIDGE}
    write_json(RESULTS, about | {"own_share": OWN_SHARE, "items": COUNTS, "rows": rows})


def kept(kind: str) -> Found:
    file = KEPT / f"{kind}.safetensors"
    if not file.is_file():
        KEPT.mkdir(parents=True, exist_ok=True)
        save_file(hidden_states(kind), file)
    return load_file(file)


def prompts(task: Task, template: str) -> list[tuple[str, str]]:
    """Splits and texts of a task's prompts, their contents in another template."""
    before, after = task.spec.template.partition("{")[0], task.spec.template.rpartition("}")[2]
    return [
        (split, template.format(item.prompt.removeprefix(before).removesuffix(after)[:CHARACTERS]))
        for split in SPLITS
        for item in task.split(split)
    ]


@torch.inference_mode()
def hidden_states(kind: str) -> Found:
    """Number of the task and the split ``(n,)`` of all prompts, and their pooled hidden states ``(n, 2, d)`` by layer.

    Hidden states are normalised token by token. They are pooled over the prompt and around its end, as the memory of
    prompts does.
    """
    train, scored = COUNTS[kind]
    stream, backbone = load_stream(STREAM, limits=Limits(train, scored, scored)), load_backbone(BACKBONE)
    rows = [
        (number, SPLITS.index(split), torch.tensor(backbone.tokenizer(text)["input_ids"][:TOKENS]))
        for number, task in enumerate(stream.tasks)
        for split, text in prompts(task, TEMPLATES[KINDS[kind]](task, number) or "")
    ]
    decoder: Any = backbone.model.get_decoder()
    decoder.layers, decoder.norm = decoder.layers[: max(LAYERS)], nn.Identity()
    found = {f"L{layer}": torch.zeros(len(rows), len(POOLS), backbone.model.config.hidden_size) for layer in LAYERS}
    by_length = sorted(range(len(rows)), key=lambda place: len(rows[place][2]))
    for begin in range(0, len(rows), BATCH):
        places = by_length[begin : begin + BATCH]
        ids = [rows[place][2] for place in places]
        on = pad_sequence([torch.ones(len(one)) for one in ids], batch_first=True)
        inputs = {"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": on.long()}
        states = decoder(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        from_end = (on.sum(1, keepdim=True) - 1 - torch.arange(on.shape[1])).clamp_min(0)
        weights = torch.stack([on, on * DECAY**from_end], 1)
        for layer in LAYERS:
            pooled = weights @ normalize(states[layer].float(), dim=-1)
            found[f"L{layer}"][places] = normalize(pooled, dim=-1)
        print(kind, begin + len(ids), "of", len(rows), flush=True)
    tasks, splits, _ = zip(*rows, strict=True)
    return found | {"task": torch.tensor(tasks), "split": torch.tensor(splits)}


def projected(pooled: Tensor) -> Tensor:
    signs = torch.randint(0, 2, (pooled.shape[1], PROJECTIONS), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return pooled.double() @ signs.double() / PROJECTIONS**0.5


def moments(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means ``(t, q)`` and covariances ``(t, q, q)`` of tasks' prompts."""
    return torch.stack([one.mean(0) for one in groups]), torch.stack([torch.cov(one.T) for one in groups])


def squared(features: Tensor, centre: Tensor, covariance: Tensor, variance: Tensor) -> Tensor:
    """The mean squared Mahalanobis distance to one centre, with the ridge, ``(n,)``."""
    inverse = torch.linalg.inv(covariance + RIDGE * variance * torch.eye(len(covariance)))
    gaps = features - centre
    return ((gaps @ inverse) * gaps).mean(-1)


def pooled_covariance(groups: Sequence[Tensor]) -> Distances:
    """Linear discriminant analysis (Fisher 1936), as the memory of prompts has it."""
    means, covariances = moments(groups)
    within = covariances.mean(0)
    return lambda features: torch.stack([squared(features, one, within, within.diagonal().mean()) for one in means], 1)


def relative(groups: Sequence[Tensor]) -> Distances:
    """Minus the distance to all learnt tasks' prompts together (Ren et al. 2021, arXiv:2106.09022)."""
    means, covariances = moments(groups)
    within, total = covariances.mean(0), covariances.mean(0) + torch.cov(means.T)
    near = pooled_covariance(groups)
    return lambda features: near(features) - squared(features, means.mean(0), total, within.diagonal().mean())[:, None]


def own_covariance(groups: Sequence[Tensor]) -> Distances:
    """Regularised discriminant analysis (Friedman 1989): each task has a covariance of its own too."""
    means, covariances = moments(groups)
    within = covariances.mean(0)
    mixed = OWN_SHARE * covariances + (1 - OWN_SHARE) * within
    variance = within.diagonal().mean()
    return lambda features: torch.stack(
        [squared(features, *one, variance) for one in zip(means, mixed, strict=True)], 1
    )


def own_relative(groups: Sequence[Tensor]) -> Distances:
    """Both: the distance by the task's own covariance, minus that to all learnt tasks' prompts together."""
    means, covariances = moments(groups)
    total, variance = covariances.mean(0) + torch.cov(means.T), covariances.mean(0).diagonal().mean()
    near = own_covariance(groups)
    return lambda features: near(features) - squared(features, means.mean(0), total, variance)[:, None]


def own_limit(groups: Sequence[Tensor]) -> Distances:
    """The distance in units of the task's own prompts' mean distance: a limit of its own for each task."""
    near = pooled_covariance(groups)
    own = torch.stack([near(one)[:, place].mean() for place, one in enumerate(groups)])
    return lambda features: near(features) / own


STATISTICS = {
    "pooled covariance": pooled_covariance,
    "relative": relative,
    "own covariance": own_covariance,
    "own covariance, relative": own_relative,
    "own limit": own_limit,
}


def shares(
    found: Found,
    features: Tensor,
    fit: Callable[[Sequence[Tensor]], Distances],
    names: Sequence[str],
    learnt: int,
    prompts: int,
) -> dict[str, Any]:
    """Of learnt tasks' prompts those that are kept, and whose nearest task is theirs; of others those that are not.

    Beside it, the others without tasks that have kin among the learnt ones.
    """
    generator = torch.Generator().manual_seed(0)
    own: dict[int, list[Tensor]] = {1: [], 2: []}
    right: list[Tensor] = []
    foreign: list[Tensor] = []
    strange: list[Tensor] = []
    for _ in range(CHOICES):
        chosen = torch.randperm(len(names), generator=generator)[:learnt]
        groups = []
        for task in chosen:
            train = features[(found["task"] == task) & (found["split"] == 0)]
            groups.append(train[torch.randperm(len(train), generator=generator)[:prompts]])
        distance, nearest = fit(groups)(features).min(1)
        theirs = torch.isin(found["task"], chosen)
        for split, distances in own.items():
            distances.append(distance[theirs & (found["split"] == split)])
        test = found["split"] == 2
        right.append((chosen[nearest] == found["task"])[theirs & test])
        foreign.append(distance[~theirs & test])
        known = {names[task] for task in chosen.tolist()}
        kin = {name for group in KIN if group & known for name in group}
        others = torch.tensor([task for task, name in enumerate(names) if name not in kin | known])
        strange.append(distance[torch.isin(found["task"], others) & test])
    limit = torch.cat(own[1]).quantile(0.95)
    return {
        "own_kept": share(torch.cat(own[2]) <= limit),
        "own_nearest": share(torch.cat(right)),
        "foreign_fall_back": share(torch.cat(foreign) > limit),
        "without_kin_fall_back": share(torch.cat(strange) > limit),
    }


if __name__ == "__main__":
    main()

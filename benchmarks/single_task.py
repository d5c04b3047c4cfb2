"""What an update of a given form learns from one task alone: one JSON line per trial, so that forms can be compared.

Run: python benchmarks/single_task.py task=law_topic,room_finnish update=anchored atoms=12 lr=0.003 seed=0,1

The words name fields of `Trial`; every combination of their values is one trial. It learns 400 training items of one
task of ``package_stream_25`` in one pass, in 100 steps of 4, on the bare backbone, and is scored on 60 validation
items; no test item is ever read. A line holds the score and the mean negative log-likelihood of an answer's token
(``nll``), both also for each item, so that two trials can be compared in pairs. Trials that the output already has are
skipped: the same command continues what was interrupted. A trial takes about a minute on one quiet core.
"""

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from himalaya_adapter.backbones import Backbone, load_backbone
from himalaya_adapter.evaluation.scoring import evaluate_task
from himalaya_adapter.methods.himalaya.channels import EXPONENT, measure, sizes_of
from himalaya_adapter.methods.himalaya_strict import HimalayaStrictConfig
from himalaya_adapter.streams import Limits, Task, load_stream
from himalaya_adapter.streams.encoding import IGNORED_LABEL, encode_item
from himalaya_adapter.training.batches import AnswerCollator, EncodedItems, LengthGroupedOrder, answer_loss

OUTPUT = Path(__file__).parent / "results/single_task/trials.jsonl"
ITEMS, MAX_LENGTH, BATCH, WARM_UP, CORE, GROUP = 400, 192, 4, 0.06, 24, 32
FIRST = 16  # items that a method may see before its first step
ALL_LINEAR = "q_proj+k_proj+v_proj+o_proj+gate_proj+up_proj+down_proj"


@dataclass(frozen=True)
class Trial:
    """One setting of one task. Fields that an update does not use keep their defaults.

    Args:
        task: A task of the stream.
        update: ``anchored``, ``loreft``, ``hashed``, PEFT's ``lora``, ``unilora``, ``vera``, ``vblora`` or
            ``tinylora``, or ``strict``, the method of version 0.1.
        lr: Largest learning rate; it falls linearly to 0 after a warm-up over 6 % of the steps.
        seed: Of the order of the items and of all random numbers.
        atoms: Vectors as wide as the stream that are trained; they give Uni-LoRA, VB-LoRA and TinyLoRA their size.
        active: Atoms that act in one layer.
        bound: Largest norm of an anchored update.
        radius: Largest norm of an atom after each step; 0 for none.
        exponent: Of the channels' sizes, in whose units an anchored update is; 0 takes all channels alike.
        rank: Of an update of weights.
        modules: Those whose weights are updated.
        start: A task that is learnt just before, from whose trained numbers this one starts; by default from none.
    """

    task: str
    update: str = "anchored"
    lr: float = 3e-3
    seed: int = 0
    atoms: int = 12
    active: int = 3
    bound: float = 2.0
    radius: float = 1.0
    exponent: float = EXPONENT
    rank: int = 1
    modules: str = ALL_LINEAR
    start: str = ""


class Update(nn.Module):
    """Something trained beside a frozen model."""

    def start(self, optimizer: torch.optim.Optimizer, first: dict[str, Tensor]) -> None: ...  # with a batch of items
    def begin(self) -> None: ...  # before each pass of the model
    def stepped(self, done: float) -> None: ...  # after each step of the optimiser, with the share that is done
    def end(self) -> None: ...  # after the last step

    def trained(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def changed(self, model: Any) -> Sequence[nn.Module]:
        """Whose outputs are changed: those of the decoder layers."""
        return model.model.layers

    def place(self, model: Any) -> list[Any]:
        """Add ``self(index, input, output)`` to each of those outputs; returns the handles of the hooks."""
        return [model.model.register_forward_pre_hook(lambda module, inputs: self.begin())] + [
            module.register_forward_hook(lambda m, x, output, index=index: output + self(index, x[0], output))
            for index, module in enumerate(self.changed(model))
        ]


class LoReft(Update):
    """LoReFT of rank 1 in every layer: ``r (v · h + b)`` with ``v = w - r`` and ``|r| = 1``."""

    def __init__(self, model: Any, trial: Trial) -> None:
        super().__init__()
        layers, d = model.config.num_hidden_layers, model.config.hidden_size
        start = normalize(torch.randn(layers, d, generator=torch.Generator().manual_seed(trial.seed)), dim=-1)
        self.write, self.read = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        self.bias = nn.Parameter(torch.zeros(layers))

    def begin(self) -> None:
        self.r = normalize(self.write, dim=-1)
        self.v = self.read - self.r

    def forward(self, layer: int, x: Tensor, h: Tensor) -> Tensor:
        r, v, bias = (values[layer].to(h.dtype) for values in (self.r, self.v, self.bias))
        return (h @ v + bias)[..., None] * r


class Atoms(Update):
    """What the two updates made of shared atoms have in common.

    The atoms are zero at the start, where both updates are exactly zero and their derivatives are not. What is
    trained is in units in which one step turns an atom alike in any width.
    """

    def __init__(self, model: Any, trial: Trial) -> None:
        super().__init__()
        self.trial, self.layers, self.width = trial, model.config.num_hidden_layers, model.config.hidden_size
        self.unit, self.generator = 64 / self.width**0.5, torch.Generator().manual_seed(trial.seed + 17)
        self.theta = nn.Parameter(torch.zeros(trial.atoms, self.width))

    def atoms(self) -> Tensor:
        return self.theta * self.unit

    @torch.no_grad()
    def stepped(self, done: float) -> None:
        if self.trial.radius:
            norms = self.theta.norm(dim=-1, keepdim=True) * self.unit
            self.theta.div_((norms / self.trial.radius).clamp_min(1.0))


class Anchored(Atoms):
    """``r (v · h)`` with ``r = unit(rho + q)``, ``v = clip(rho - q - r)``, and ``q`` a signed sum of a few atoms.

    Both are in units of the channels' sizes. The anchors rho are made from 24 orthonormal vectors. Each atom acts in
    as many layers as any other, to one.
    """

    def __init__(self, model: Any, trial: Trial) -> None:
        super().__init__(model, trial)
        self.sizes = sizes_of(measure(model, model.model.layers, trial.seed)) ** (trial.exponent / EXPONENT)
        core = torch.linalg.qr(torch.randn(self.width, CORE, generator=self.generator)).Q.T
        self.rho = self.signs(self.layers, CORE) @ core
        self.code, acted = torch.zeros(self.layers, trial.atoms), torch.zeros(trial.atoms)
        for row in self.code:
            chosen = (acted + torch.rand(trial.atoms, generator=self.generator)).argsort()[: trial.active]
            acted[chosen] += 1
            row[chosen] = self.signs(len(chosen))

    def signs(self, *shape: int) -> Tensor:
        return (torch.randint(0, 2, shape, generator=self.generator) * 2.0 - 1) / shape[-1] ** 0.5

    def begin(self) -> None:
        q = self.code @ self.atoms()
        r = normalize(self.rho + q, dim=-1)
        v = self.rho - q - r
        v = v / (v.norm(dim=-1, keepdim=True) / self.trial.bound).clamp_min(1.0)
        self.r, self.v = r * self.sizes, v / self.sizes

    def forward(self, layer: int, x: Tensor, h: Tensor) -> Tensor:
        return (h @ self.v[layer].to(h.dtype))[..., None] * self.r[layer].to(h.dtype)


class Hashed(Atoms):
    """A LoRA ``B (A_0 + A)``: A and B picked from the atoms by a seeded hash, as in Uni-LoRA (arXiv:2506.00799).

    A_0 is fixed, with rows of norm 1. A picked entry is times the root of the width: an atom of norm 1 holds entries
    of about 1, which is the size that Uni-LoRA's reach.
    """

    def __init__(self, model: Any, trial: Trial) -> None:
        super().__init__(model, trial)
        names = trial.modules.split("+")
        self.targets = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in names]
        self.sizes = [trial.rank * n for m in self.targets for n in (m.in_features, m.out_features)]
        picks = torch.randperm(sum(self.sizes), generator=self.generator) % self.theta.numel()
        self.picks, self.scale = picks, (torch.bincount(picks)[picks] / self.width).rsqrt()
        shapes = [(trial.rank, m.in_features) for m in self.targets]
        self.fixed = [torch.randn(shape, generator=self.generator) / shape[1] ** 0.5 for shape in shapes]

    def begin(self) -> None:
        parts = iter((self.atoms().flatten()[self.picks] * self.scale).split(self.sizes))
        self.factors = [(fixed + next(parts).view_as(fixed), next(parts)) for fixed in self.fixed]

    def changed(self, model: Any) -> Sequence[nn.Module]:
        return self.targets

    def forward(self, index: int, x: Tensor, output: Tensor) -> Tensor:
        down, up = self.factors[index]
        return linear(linear(x, down.to(x.dtype)), up.view(-1, len(down)).to(x.dtype))


class Adapter(Update):
    """A method of PEFT; ``model`` has it on."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class Strict(Adapter):
    """HIMALAYA_STRICT as version 0.1 learnt 25 tasks by default: three atoms a task, and a trained router."""

    def __init__(self, model: Any, task: str) -> None:
        super().__init__(model)
        self.task = task

    def start(self, optimizer: torch.optim.Optimizer, first: dict[str, Tensor]) -> None:
        self.model.train()
        keep = {"logits_to_keep": first["labels"].shape[1], "use_cache": False}
        self.model.start_task(self.task, {**first, **keep})
        self.model.anneal(0.0)
        self.handles = self.model.protect(optimizer)

    def stepped(self, done: float) -> None:
        self.model.anneal(done)

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.model.end_task()
        self.model.eval()


def rounded(values: Tensor, bits: int) -> Tensor:
    """Rounded in groups of 32 with a half-precision scale and minimum each; the last group may be smaller."""
    flat = values.flatten()
    groups = torch.cat([flat, flat[-1:].expand(-len(flat) % GROUP)]).view(-1, GROUP)
    low = groups.amin(1, keepdim=True).half().float()
    scale = ((groups.amax(1, keepdim=True) - low) / (2**bits - 1)).half().float().clamp_min(1e-8)
    whole = ((groups - low) / scale).round().clamp(0, 2**bits - 1) * scale + low
    return whole.flatten()[: len(flat)].view_as(values)


def peft_config(model: Any, trial: Trial) -> peft.PeftConfig:
    """PEFT's method of this name, where it can be chosen with as many trained numbers as ``atoms`` atoms have.

    Raises:
        ValueError: There is none.
    """
    if trial.update == "strict":
        sizes = {"core_atoms": 8, "elastic_atoms": 75, "atom_step": 2.0}
        return HimalayaStrictConfig(task_type="CAUSAL_LM", seed=trial.seed, **sizes)
    names, length = trial.modules.split("+"), trial.atoms * model.config.hidden_size
    options = {"r": trial.rank, "target_modules": names}
    if trial.update == "lora":
        return peft.LoraConfig(**options, lora_alpha=2 * trial.rank)
    if trial.update == "unilora":
        return peft.UniLoraConfig(**options, theta_d_length=length, proj_seed=trial.seed)
    if trial.update == "vera":
        return peft.VeraConfig(**options, projection_prng_key=trial.seed)
    widths = [n for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in names for n in m.weight.shape]
    if trial.update == "tinylora":
        return peft.TinyLoraConfig(**options, u=2 * length // len(widths), projection_seed=trial.seed)
    if trial.update == "vblora":
        part = math.gcd(*widths)
        # Each part of a factor has a logit for each vector.
        vectors = length // (trial.rank * sum(widths) // part + part)
        return peft.VBLoRAConfig(**options, num_vectors=vectors, vector_length=part)
    raise ValueError(f"update={trial.update} is none of those that `Trial` names")


@contextmanager
def adapted(backbone: Backbone, trial: Trial) -> Iterator[tuple[Any, Update]]:
    """The model with a new update of the trial's form, and the update; afterwards the model is bare again."""
    if kind := {"anchored": Anchored, "loreft": LoReft, "hashed": Hashed}.get(trial.update):
        update = kind(backbone.model, trial)
        handles = update.place(backbone.model)
        yield backbone.model, update
        for handle in handles:
            handle.remove()
        return
    torch.manual_seed(trial.seed)
    model = peft.get_peft_model(backbone.model, peft_config(backbone.model, trial)).eval()
    yield model, Strict(model, trial.task) if trial.update == "strict" else Adapter(model)
    model.unload()


def learn(model: Any, items: Sequence[Any], collate: AnswerCollator, update: Update, trial: Trial) -> list[float]:
    """One pass over the items; returns the loss of each step."""
    order = list(LengthGroupedOrder(BATCH, [len(item["input_ids"]) for item in items], trial.seed))
    steps, warm, losses = math.ceil(len(order) / BATCH), math.ceil(WARM_UP * len(order) / BATCH), []
    optimizer = torch.optim.AdamW(update.trained(), trial.lr, weight_decay=0.0)
    update.start(optimizer, collate(items[:FIRST]))
    for step in range(steps):
        rate = step / warm if step < warm else (steps - step) / max(1, steps - warm)
        optimizer.param_groups[0]["lr"] = trial.lr * rate
        loss, _ = answer_loss(model, collate([items[i] for i in order[BATCH * step : BATCH * (step + 1)]]), "mean")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(update.trained(), 1.0)
        optimizer.step()
        update.stepped((step + 1) / steps)
        losses.append(loss.item())
    update.end()
    return losses


@torch.no_grad()
def measured(backbone: Backbone, model: Any, task: Task, collate: AnswerCollator) -> dict[str, Any]:
    """Score and mean negative log-likelihood of an answer's token on the validation items, and of each item."""
    items = [encode_item(backbone.tokenizer, item, MAX_LENGTH) for item in task.validation]
    order, nll = sorted(range(len(items)), key=lambda index: len(items[index]["input_ids"])), [0.0] * len(items)
    for start in range(0, len(order), 20):
        batch = collate([items[i] for i in order[start : start + 20]])
        loss, counts = answer_loss(model, batch, "none")[0], (batch["labels"][:, 1:] != IGNORED_LABEL).sum(1)
        for index, value in zip(order[start : start + 20], loss.view(len(counts), -1).sum(1) / counts, strict=True):
            nll[index] = round(value.item(), 4)
    result = evaluate_task(model, backbone.tokenizer, task, split="validation", batch_size=60, max_length=MAX_LENGTH)
    summary = {"score": round(result.score, 4), "nll": round(statistics.mean(nll), 4)}
    return summary | {"item_scores": [round(score, 3) for score in result.item_scores], "item_nll": nll}


def run(trial: Trial, tasks: Sequence[Task], backbone: Backbone, bits: Sequence[int]) -> dict[str, Any]:
    """The line of a trial; ``bits``: also scored with the parameters rounded to so many."""
    started, collate = time.process_time(), AnswerCollator(backbone.tokenizer.pad_token_id)
    with adapted(backbone, trial) as (model, update):
        for name in filter(None, (trial.start, trial.task)):
            task = next(task for task in tasks if task.name == name)
            items = EncodedItems(backbone.tokenizer, [task], MAX_LENGTH).first(ITEMS)
            losses = learn(model, items, collate, update, trial)
        row = asdict(trial) | {"numbers": sum(p.numel() for p in update.trained())}
        row |= measured(backbone, model, task, collate)
        row["dtype"] = str(backbone.dtype).removeprefix("torch.")
        row["losses"] = [round(statistics.mean(part), 4) for part in (losses[:5], losses[-20:])]
        trained = [(parameter, parameter.detach().clone()) for parameter in update.trained()]
        for count in bits:
            with torch.no_grad():
                for parameter, values in trained:
                    parameter.copy_(rounded(values, count))
            row[f"{count}_bits"] = measured(backbone, model, task, collate)
    return row | {"cpu_seconds": round(time.process_time() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", nargs="+", metavar="field=value[,value...]", help="a field of Trial and its values")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--bits", type=int, nargs="*", default=[], help="also score rounded to so many bits")
    arguments = parser.parse_args()
    kinds: dict[str, Any] = {field.name: field.type for field in fields(Trial)}
    grid = dict(word.split("=", 1) for word in arguments.fields)
    columns = [[kinds[name](value) for value in values.split(",")] for name, values in grid.items()]
    trials = [Trial(**dict(zip(grid, values, strict=True))) for values in itertools.product(*columns)]
    arguments.output.touch()
    rows = [json.loads(line) for line in arguments.output.read_text().splitlines()]
    known = {Trial(**{name: row[name] for name in kinds if name in row}) for row in rows}
    if not (missing := [trial for trial in trials if trial not in known]):
        return
    tasks = load_stream("package_stream_25", limits=Limits(train=ITEMS, validation=60, test=1)).tasks
    backbone = load_backbone("smollm2-135m")
    backbone.model.requires_grad_(False).eval()
    backbone.model.set_attn_implementation("eager")  # a sixth faster on a CPU, for sequences as short as these
    for trial in missing:
        row = run(trial, tasks, backbone, arguments.bits)
        with arguments.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*(row[name] for name in ("task", "start", "update", "lr", "seed", "score", "nll", "cpu_seconds")))


if __name__ == "__main__":
    main()

"""What methods have in common whose adapters can tell a task from its prompt."""

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.events import Event
from himalaya_adapter.methods.merging import is_merged, refuse_if_merged
from himalaya_adapter.methods.shared_state import SharedStateModel
from himalaya_adapter.names import normalised

logger = logging.getLogger(__name__)
# What a generation may be given of its prompts, and how a pass calls it.
WHOLE_PROMPTS = {
    **{"inputs": "input_ids", "input_ids": "input_ids", "inputs_embeds": "inputs_embeds"},
    **{"attention_mask": "attention_mask", "past_key_values": "past_key_values"},
}
IGNORED_LABEL = -100  # of the losses of torch and transformers
NO_PROMPTS = (
    "no prompt was seen in training, for no pass was given labels, or no row has tokens before its first label: "
    "set_task(None) will not find the task; call model.observe_prompts(...) before its first step"
)
OTHERS_TRAIN = (
    "{}: modules_to_save, or parameters of the model itself, are trained by every task and belong to none, so they "
    "can be neither shared nor taken back: make the adapter without modules_to_save (a classification head is one, so "
    "use a causal language model), and freeze the model; end_task() keeps an open task"
)


class PromptedModel(SharedStateModel):
    """A tuner that watches where a pass and a generation begin, and lets the prompts choose the task there.

    Its adapters have the verbs ``start_task``, ``end_task``, ``set_task``, ``infer_task`` and ``read_prompts``,
    ``infers_task`` and a ``prompt_memory``. All verbs act on the active adapters and can be called on the `PeftModel`
    itself.
    """

    _watches = False  # whether training passes show the prompts of the task that is being learnt
    _seen: set[int]  # those prompts
    _generates: bool | None = False  # None: the prompts of this generation have been read

    separates_tasks = True
    switches_tasks = True
    recognises_tasks = True

    def start_task(self, name: str, examples: Mapping[str, Any] | None = None) -> list[Event]:
        """Begin to learn task ``name``, which starts as the frozen model; HIMALAYA learns a known one further.

        Args:
            name: The task's name; for HIMALAYA at most 64 bytes.
            examples: Used by HIMALAYA_STRICT alone.

        Returns:
            What happened to make room.

        Raises:
            HimalayaError: Another task is being learnt, no room, a name that cannot be stored, a merged adapter, one
                for inference, or a second task where modules to save, or parameters of the model, are trained. Nothing
                is changed.
        """
        if {*self.tasks} - {normalised(name)}:
            self.refuse_if_others_train(f"start_task({name!r})")
        with self.unchanged_by_errors(f"start_task({name!r})"):
            return [event for adapter in self._active() for event in adapter.start_task(name)]

    def refuse_if_others_train(self, wanted: str) -> None:
        """Make sure that all that is trained is the adapter's own, or that there is one task alone.

        Raises:
            HimalayaError: Modules to save, or parameters of the model, are trained too.
        """
        kept = any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.model.modules())
        if kept or any(parameter.requires_grad for parameter in self.model.parameters()):
            raise HimalayaError(OTHERS_TRAIN.format(wanted))

    @contextmanager
    def taking_back(self, wanted: str) -> Iterator[None]:
        """A block that takes back what a task has learnt, and watches no prompts from then on.

        Raises:
            HimalayaError: As `refuse_if_others_train` and `unchanged_by_errors`.
        """
        self.refuse_if_others_train(wanted)
        with self.unchanged_by_errors(wanted):
            self._watches = False
            yield

    @contextmanager
    def unchanged_by_errors(self, wanted: str) -> Iterator[None]:
        """A block after whose exception every active adapter, and all else that is trained, is as before it.

        Args:
            wanted: The call that it is, such as ``start_task('a')``.

        Raises:
            HimalayaError: A merged adapter.
        """
        refuse_if_merged(self.model, wanted)
        adapters, watched = self._active(), self._watches
        trained = [(one, one.detach().clone()) for one in self.model.parameters() if one.requires_grad]
        before = [
            (copy.deepcopy(one.state_dict()), {name: getattr(one, name) for name in one.beside_tensors})
            for one in adapters
        ]
        try:
            yield
        except BaseException:
            self._watches = watched
            if is_merged(self.model):
                self.unmerge_adapter()
            for parameter, content in trained:
                parameter.data.copy_(content)
            for adapter, (tensors, others) in zip(adapters, before, strict=True):
                adapter.load_state_dict(tensors)
                vars(adapter).update(others)
            self.zero_grad()
            raise

    def copy_to(self, name: str) -> None:
        """Make another adapter, if there is one of this name that has learnt nothing, the same as the active one."""
        other: Any = self._shared[name] if name in self._shared and name not in self.active_adapters else None
        if other is not None and not other.tasks.known():
            other.load_state_dict(self._active()[0].state_dict())

    def end_task(self) -> list[Event]:
        """Store the task that is being learnt. HIMALAYA answers as it from now on; nothing changes it any more.

        Returns:
            Slots that it shares with other tasks, and evictions that made room for it.

        Raises:
            HimalayaError: A merged adapter.
        """
        refuse_if_merged(self.model, "end_task()")
        self._end_watch()
        return [event for adapter in self._active() for event in adapter.end_task()]

    def set_task(self, name: str | Sequence[str | None] | None) -> None:
        """Answer as task ``name`` from now on.

        Args:
            name: A task; or ``None``: each prompt is answered as the task that it looks like (by HIMALAYA as the
                frozen model, if it looks like none). A prompt is all that the first pass is given, up to the first
                label; without ``labels`` an answer in that pass is read too. HIMALAYA also takes a list with a name
                for each row of a batch, in which ``None`` is the frozen model.

        Raises:
            HimalayaError: A merged adapter; or a task that HIMALAYA does not know.
        """
        refuse_if_merged(self.model, f"set_task({name!r})")
        for adapter in self._active():
            adapter.set_task(name)

    def observe_prompts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Remember what the open task's prompts look like, as moments of fixed size, for ``set_task(None)``.

        Args:
            input_ids: Prompts without their answers, ``(batch, length)``.
            attention_mask: 0 at padding; without it all tokens count.
        """
        self._watches = False  # who says what the prompts are need not have them found
        self._observe(*self._embedded(input_ids, attention_mask))

    def watch_prompts(self) -> None:
        """Observe the prompts of all training passes until the task ends: the tokens before a row's first label.

        Rows that hold several examples are taken apart where their positions begin anew, as in TRL's packing. Rows
        without labels, or with labels from the first token on, show no prompt.
        """
        self._watches = True
        self._seen = set()
        for adapter in self._active():
            adapter.prompt_memory.begin()

    def _end_watch(self) -> None:
        """Put together what all processes have seen; say so if no pass has shown a prompt."""
        if self._watches:
            self._watches = False
            for adapter in self._active():
                if not adapter.prompt_memory.gather():
                    logger.warning(NO_PROMPTS)

    def remembers_task(self, name: str) -> bool:
        """Whether this task has been learnt."""
        return normalised(name) in self.tasks

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of every stored tensor, by name."""
        return self._active()[0].stored_bytes()

    def norm_certificate(self) -> dict[str, float]:
        """The largest norms: ``atom_norm_max``, and where the update's is bounded ``update_norm_max``."""
        return self._active()[0].norm_certificate()

    def task_statistics(self) -> dict[str, Any]:
        """What is worth knowing of the current task, and of the room that is left."""
        return self._active()[0].task_statistics()

    @torch.no_grad()
    def infer_task(
        self, input_ids: Tensor, names: Sequence[str] | None = None, attention_mask: Tensor | None = None
    ) -> list[tuple[str | None, float]]:
        """Say which task prompts look like, by the first active adapter.

        Args:
            input_ids: ``(batch, length)``.
            names: The tasks that may be named. By default all that have been learnt; HIMALAYA_STRICT, which keeps no
                names, needs them.
            attention_mask: 0 at padding; without it all tokens count.

        Returns:
            For each prompt the name, or ``None`` if the task found is not among the names, and a confidence in [0, 1].
        """
        seen = self._read(*self._embedded(input_ids, attention_mask))
        found: list[tuple[str | None, float]] = self._active()[0].infer_task(*seen, names)
        return found

    # PEFT's plumbing -------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create the adapter, then watch the model's passes and generations."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if not hasattr(self, "_hook"):
            self._hook = model.register_forward_pre_hook(self._begin_pass, with_kwargs=True)
            if hasattr(model, "generate"):
                vars(model)["generate"] = partial(self._generate, cast(Any, model).generate)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model. PEFT's own version passes by the model's hooks."""
        return self.model(*args, **kwargs)

    def _begin_pass(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        """Let the prompts choose the task, at the first pass of a generation; observe those of a training pass."""
        if self._shows_prompts or any(adapter.infers_task for adapter in self._active()):
            self._read_pass(model, args, inputs)

    @property
    def _shows_prompts(self) -> bool:
        """Whether a pass now is one of training whose prompts are watched, though the model be in evaluation mode."""
        return self._watches and any(adapter.training for adapter in self._active())

    @torch.compiler.disable
    def _read_pass(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        given = inspect.signature(model.forward).bind_partial(*args, **inputs).arguments
        given |= given.pop("kwargs", {})
        cache = given.get("past_key_values")
        if self._generates is None or (cache is not None and cache.get_seq_length() > 0):
            return
        if self._generates:
            self._generates = None  # the passes to come are of the same prompts
        for adapter in self._active():
            if adapter.infers_task:
                adapter.read_prompts(*self._read(*self._prompts(given)))
        if self._shows_prompts and given.get("labels") is not None:
            given = _unpacked(given)
            embeddings, mask = self._prompts(given)
            self._observe(embeddings, mask * self._new_prompts(given.get("input_ids"), mask))

    def _observe(self, embeddings: Tensor, mask: Tensor) -> None:
        """Let the memories that have not seen enough see the rows that have a token."""
        rows = mask.any(1)
        memories = [one.prompt_memory for one in self._active() if not one.prompt_memory.has_enough]
        if memories and rows.any():
            columns = mask.any(0)  # others, as those of the answers, are no part of a prompt
            seen = self._read(embeddings[rows][:, columns], mask[rows][:, columns])
            for memory in memories:
                memory.observe_prompts(*seen)

    def _read(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What a memory of prompts is given of prompts: by default their input embeddings, and the mask."""
        return embeddings, mask

    def _new_prompts(self, ids: Tensor | None, mask: Tensor) -> Tensor:
        """Which rows hold a prompt that this process has not seen in the task, ``(b, 1)``: epochs add nothing."""
        if ids is None:
            return torch.ones_like(mask[:, :1])
        rows = torch.where(mask > 0, ids, -1).tolist()
        keys = [hash(tuple(token for token in row if token >= 0)) for row in rows]
        new = [key not in self._seen and key not in keys[:place] for place, key in enumerate(keys)]
        self._seen.update(keys)
        return torch.tensor(new, device=mask.device)[:, None]

    @torch.no_grad()
    def _prompts(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Input embeddings of a pass ``(b, s, d)``, and 1 at tokens of prompts: those before a row's first label.

        Labels of whole rows, as in classification, follow all tokens.
        """
        mask, labels, embeddings = (given.get(key) for key in ("attention_mask", "labels", "inputs_embeds"))
        if embeddings is None:
            embeddings, _ = self._embedded(given["input_ids"], None)
        if not torch.is_tensor(mask) or mask.dim() != 2:
            mask = torch.ones(embeddings.shape[:2], device=embeddings.device)
        if labels is not None and labels.dim() == 2 and not labels.is_floating_point():  # as many as there are logits
            answers = pad(labels != IGNORED_LABEL, (mask.shape[1] - labels.shape[1], 0))
            mask = mask * (answers.cumsum(1) == 0)
        return embeddings, mask

    def _generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In the place of the model's own ``generate``: prompts choose the task once, with a cache or without."""
        given = {"inputs": args[0]} | kwargs if args else kwargs
        whole = {name: given[key] for key, name in WHOLE_PROMPTS.items() if given.get(key) is not None}
        self._generates = True
        adapters = self._active()
        try:
            for adapter in adapters:
                adapter.generates = len(next(iter(whole.values()), "1"))
            # The first pass may be given less, as with `prefill_chunk_size`; without a mask, that pass has one.
            if "attention_mask" in whole and any(adapter.infers_task for adapter in adapters):
                self._read_pass(self.model, (), whole)
            return generate(*args, **kwargs)
        finally:
            self._generates = False
            for adapter in adapters:
                adapter.generates = 0

    def _embedded(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        embeddings = cast(nn.Embedding, cast(PreTrainedModel, self.model).get_input_embeddings())(input_ids)
        return embeddings, torch.ones_like(input_ids) if attention_mask is None else attention_mask

    def _check_target(self, base: nn.Module, config: PeftConfig, key: str) -> None:
        if cast(Any, config).placement == "weights" and not isinstance(base, nn.Linear):
            raise TypeError(
                f"target '{key}' is a {type(base).__name__}, not a linear module; placement='weights' adapts "
                "linear modules only: name those in target_modules, or use placement='residual_stream'"
            )

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        self._hook.remove()
        vars(model).pop("generate", None)
        return model


def _unpacked(given: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a pass with a row for each example, also where examples lie one after another without padding."""
    positions, ids = given.get("position_ids"), given.get("input_ids")
    if given.get("attention_mask") is not None or positions is None:
        return given
    if ids is None or ids.shape != given["labels"].shape:
        return given
    first = positions.reshape(-1, *positions.shape[-2:])[0].expand_as(ids) == 0  # some models have three of a token
    first[:, 0] = True
    starts = first.flatten().nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([ids.numel()])])
    lengths = (ends - starts).tolist()
    parts = {"input_ids": 0, "labels": IGNORED_LABEL}
    rows = {
        key: pad_sequence(given[key].flatten().split(lengths), batch_first=True, padding_value=filler)
        for key, filler in parts.items()
    }
    ones = [torch.ones(length, device=positions.device) for length in lengths]
    return rows | {"attention_mask": pad_sequence(ones, batch_first=True)}

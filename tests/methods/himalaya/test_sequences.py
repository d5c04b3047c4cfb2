"""No combination of calls forgets silently: random sequences of verbs against a plain list of what must be known."""

from contextlib import suppress
from types import SimpleNamespace

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from learning import alone, random_atoms

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya import HimalayaAdapter
from himalaya_adapter.methods.himalaya.adapter import UNNAMED
from himalaya_adapter.methods.himalaya.update import unscaled
from himalaya_adapter.methods.task_inference.prompted import PromptedModel

NAMES = st.sampled_from("abcd")


def learns(adapter: HimalayaAdapter) -> bool:
    """Whether what answers is what is being learnt."""
    return adapter.rows is None and not adapter.infers_task and adapter.tasks.answering == adapter.tasks.being_learnt


class Verbs(RuleBasedStateMachine):
    """An adapter with slots for three tasks, and the hashes of what it has learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.adapter = alone(elastic_atoms=9, max_tasks=5)
        self.learnt: dict[str, str] = {}
        self.seed = 0

    def unchanged_by_errors(self):
        """As the model's verbs are."""
        one = self.adapter
        tuner = SimpleNamespace(_active=lambda: [one], _watches=False, model=one, zero_grad=one.zero_grad)
        return PromptedModel.unchanged_by_errors(tuner, "a call")

    def attempt(self, verb, *arguments) -> bool:
        """Whether it was done; what is refused changes nothing."""
        before = {name: tensor.clone() for name, tensor in self.adapter.state_dict().items()}
        try:
            with self.unchanged_by_errors():
                verb(*arguments)
        except HimalayaError:
            assert all(torch.equal(tensor, before[name]) for name, tensor in self.adapter.state_dict().items())
            return False
        return True

    def note(self, name: str | None) -> None:
        """A task has ended, or what was learnt without a name was stored."""
        if name is None and UNNAMED in self.adapter.tasks.known() and UNNAMED not in self.learnt:
            name = UNNAMED
        if name is not None:
            self.learnt[name] = self.adapter.task_hash(name)

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        before = self.adapter.open_task
        if self.attempt(self.adapter.start_task, name) and before != name:
            self.note(before)

    @precondition(lambda self: learns(self.adapter))
    @rule(kept=st.integers(0, 3))
    def train(self, kept: int) -> None:
        """With atoms that are shared, or do not move."""
        self.seed += 1
        atoms = torch.cat([random_atoms(0)[:kept], random_atoms(self.seed)[kept:]])
        self.adapter.atoms.data = unscaled(atoms)

    @rule()
    def end(self) -> None:
        before = self.adapter.open_task
        if self.attempt(self.adapter.end_task):
            self.note(before)

    @rule(name=NAMES)
    def learn(self, name: str) -> None:
        self.start(name)
        if self.adapter.open_task == name:
            self.adapter.answer_as(self.adapter.tasks.being_learnt)
            self.train(0)
            self.end()

    @rule(name=NAMES)
    def start_and_train(self, name: str) -> None:
        self.start(name)
        if learns(self.adapter):
            self.train(0)

    @rule(name=NAMES)
    def forget(self, name: str) -> None:
        if self.attempt(self.adapter.forget_task, name):
            self.learnt.pop(name, None)

    @rule(name=st.one_of(st.none(), NAMES, st.lists(NAMES, max_size=3)))
    def answer(self, name: str | list[str] | None) -> None:
        self.attempt(self.adapter.set_task, name)

    @rule()
    def reload(self) -> None:
        state = {name: tensor.clone() for name, tensor in self.adapter.state_dict().items()}
        self.adapter.check_replacement(state)
        self.adapter = alone(elastic_atoms=9, max_tasks=5)
        self.adapter.load_state_dict(state)

    @rule(name=NAMES)
    def break_off(self, name: str) -> None:
        """As an exception inside of ``with model.learning(name)``."""
        with suppress(KeyboardInterrupt), self.unchanged_by_errors():
            if self.adapter.open_task is None and self.attempt(self.adapter.start_task, name):
                self.adapter.atoms.data = unscaled(random_atoms(7))
            raise KeyboardInterrupt

    @invariant()
    def what_was_learnt_is_known(self) -> None:
        assert set(self.adapter.tasks.known()) == set(self.learnt)
        for name, wanted in self.learnt.items():
            if name != self.adapter.open_task:
                assert self.adapter.task_hash(name) == wanted, name


Verbs.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestSequences = Verbs.TestCase

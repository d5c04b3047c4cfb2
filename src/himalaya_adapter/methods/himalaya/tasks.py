"""The table of tasks: of which atoms of the dictionary, and how much of each, a task consists (docs/method.md)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from himalaya_adapter.errors import HimalayaError, unknown_name
from himalaya_adapter.methods.kept import Kept
from himalaya_adapter.names import TASK_NAME_BYTES, normalised

from .dictionary import Dictionary

# Dictionary atoms that an evicted atom's stand-in may combine. An atom with a slot of its own needs one.
TERMS = 8
# A coefficient is an int8 in these steps: 1 is exact, and the largest is almost 2.
COEFFICIENT_STEP = 1 / 64
LARGEST_COEFFICIENT = 127
NO_ROW, FROZEN = -1, -2
NOTHING = -1


class TaskTable(nn.Module):
    """Rows of fixed number and size, whatever the number of tasks.

    Args:
        rows: Most tasks.
        atoms: Atoms of a task ``k``.
    """

    def __init__(self, rows: int, atoms: int) -> None:
        super().__init__()
        self.names: Tensor = nn.Buffer(torch.zeros(rows, TASK_NAME_BYTES, dtype=torch.uint8))
        # Numbers of dictionary atoms, core first, and how much of each; NOTHING where a term is not used.
        self.numbers: Tensor = nn.Buffer(torch.full((rows, atoms, TERMS), NOTHING, dtype=torch.int16))
        self.coefficients: Tensor = nn.Buffer(torch.zeros(rows, atoms, TERMS, dtype=torch.int8))
        self.learnt: Tensor = nn.Buffer(torch.zeros(rows, dtype=torch.bool))
        # The row that is being learnt, and the one that answers; NO_ROW: learning, or answering, without a name.
        self.open_row: Tensor = nn.Buffer(torch.tensor(NO_ROW))
        self.answers: Tensor = nn.Buffer(torch.tensor(NO_ROW))
        # Reading a number waits for the device.
        self._being_learnt: Kept[int] = Kept()
        self._answering: Kept[int] = Kept()

    @property
    def being_learnt(self) -> int:
        """The row that is being learnt, or `NO_ROW`."""
        return self._being_learnt.get(lambda: int(self.open_row), self.open_row)

    @property
    def answering(self) -> int:
        """The row that answers, `FROZEN`, or `NO_ROW`."""
        return self._answering.get(lambda: int(self.answers), self.answers)

    def known(self) -> list[str]:
        """Names of the tasks that have been learnt, in the order of their rows."""
        return [self.name(row) for row in self.learnt.nonzero().flatten().tolist()]

    def name(self, row: int) -> str:
        """The name in a row."""
        return bytes(self.names[row].tolist()).rstrip(b"\0").decode()

    def find(self, name: str) -> int | None:
        """The row of a task that has been learnt or is being learnt.

        Raises:
            HimalayaError: No task can have this name.
        """
        rows = (self.names == self._encoded(name)).all(1).nonzero()
        return int(rows[0]) if len(rows) else None

    def row_of(self, name: str) -> int:
        """The row of a task.

        Raises:
            HimalayaError: The task is not known; the message lists those that are.
        """
        row = self.find(name)
        if row is None:
            raise unknown_name("task", name, self.known())
        return row

    def open(self, name: str) -> int:
        """The row of a task that begins to be learnt: its own if it is known, else a free one.

        Raises:
            HimalayaError: The name cannot be stored, or every row is taken.
        """
        row = self.find(name)
        if row is None:
            free = (self.names == 0).all(1).nonzero()
            if not len(free):
                raise HimalayaError(
                    f"no room for task '{name}': all {len(self.learnt)} rows of the table are taken (max_tasks)"
                )
            row = int(free[0])
            self.names[row] = self._encoded(name)
        self.open_row.fill_(row)
        return row

    def _encoded(self, name: str) -> Tensor:
        """A name as a row holds it, ``(64,)``."""
        content = normalised(name).encode().ljust(TASK_NAME_BYTES, b"\0")
        return torch.tensor(list(content), dtype=torch.uint8, device=self.names.device)

    def empty(self, row: int) -> None:
        """Take from a row what its task has learnt."""
        self.numbers[row] = NOTHING
        self.coefficients[row] = 0
        self.learnt[row] = False

    def set_atom(self, row: int, atom: int, numbers: Sequence[int], coefficients: Tensor) -> None:
        """Say which dictionary atoms, and how much of each, one of a task's atoms is; none: it is zero."""
        unused = TERMS - len(numbers)
        self.numbers[row, atom] = torch.tensor([*numbers, *[NOTHING] * unused], dtype=torch.int16)
        self.coefficients[row, atom] = pad((rounded(coefficients) / COEFFICIENT_STEP).to(torch.int8), (0, unused))

    def atoms(self, row: int, dictionary: Dictionary) -> Tensor:
        """The atoms ``(k, d)`` that are stored in a row; zero where nothing is."""
        weights = self.coefficients[row].float() * COEFFICIENT_STEP
        there, place = self.numbers[row].long().clamp_min(0).unique(return_inverse=True)
        return (weights[..., None] * dictionary.atoms(there)[place]).sum(1)

    def used(self, but: int | None = None) -> Tensor:
        """Mask ``(rows, k, 8)`` of the terms that learnt tasks, ``but`` that of one row, consist of."""
        used = (self.coefficients != 0) & self.learnt[:, None, None]
        if but is not None:
            used[but] = False
        return used


def rounded(coefficients: Tensor) -> Tensor:
    """Coefficients as they can be stored."""
    steps = (coefficients / COEFFICIENT_STEP).round()
    return steps.clamp(-LARGEST_COEFFICIENT, LARGEST_COEFFICIENT) * COEFFICIENT_STEP

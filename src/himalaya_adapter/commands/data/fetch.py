"""``himalaya data fetch``."""


def command(stream: str) -> None:
    """Bring a stream's archives into the cache."""
    from himalaya_adapter.streams.catalogue import fetch_stream
    from himalaya_adapter.streams.plain_text import held_out_text

    held_out_text()  # every run measures its base model's drift on it
    for path in fetch_stream(stream).values():
        print(path)

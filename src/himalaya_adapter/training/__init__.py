"""Learning a stream: one task after another, resumable at any moment."""

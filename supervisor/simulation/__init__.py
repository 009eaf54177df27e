"""The core in imaginary time on imaginary cards: the same decisions, replayed in seconds."""

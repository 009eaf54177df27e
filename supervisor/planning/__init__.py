"""What fits before anything runs: from weights' headers and config.json to bytes, mends, and who fits with whom."""

"""llmd: one asyncio daemon that runs a GPU host's language models."""

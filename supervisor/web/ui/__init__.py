"""The dashboard: pages, one stream of what changes, and what its buttons do."""

UI = "/ui/"
"""Where it lies on the public port."""

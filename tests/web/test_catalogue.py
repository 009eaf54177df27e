"""The list of models: names in order, and how far each is."""

from __future__ import annotations

from pathlib import Path

from supervisor.config import Config, Profile
from supervisor.web.catalogue import own_entries


def test_models_and_profiles_are_listed_cold_ones_too() -> None:
    profiles = {
        name: Profile(name=name, model="llama", weights="w", gpus=(0,)) for name in ("llama_0", "llama_1")
    }
    config = Config(path=Path("llmd.toml"), profiles=profiles)
    engines = [
        {"profile": "llama_0", "state": "cold", "max_model_len": 4096},
        {"profile": "llama_1", "state": "ready", "max_model_len": 8192},
    ]
    entries = own_entries(config, engines, 17)
    assert list(entries) == ["llama", "llama_0", "llama_1"]
    assert entries["llama"] == {
        "id": "llama",
        "object": "model",
        "created": 17,
        "owned_by": "llmd",
        "name": "llama",
        "max_model_len": 8192,
        "status": {"value": "ready"},
    }
    assert entries["llama_0"]["status"] == {"value": "cold"}
    assert own_entries(config, [], 17)["llama"]["status"] == {"value": "cold"}

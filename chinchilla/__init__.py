"""Chinchilla: the best transformer your compute can buy.

    import chinchilla

    loaded = chinchilla.load_run(Path("recipes/translate.toml"), ["budget.time=10m"])
    result = chinchilla.train(loaded, progress)
    model = chinchilla.load(result.run)

The names below are loaded when they are first used, so that importing the package imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chinchilla.config.load import load_run
    from chinchilla.config.run import Run
    from chinchilla.verbs.compress import compress
    from chinchilla.verbs.load import load
    from chinchilla.verbs.plan import plan
    from chinchilla.verbs.serve import serve
    from chinchilla.verbs.train import train

__all__ = ["Run", "compress", "load", "load_run", "plan", "serve", "train"]

_HOMES = {"Run": "config.run", "load_run": "config.load"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'chinchilla' has no attribute {name!r}")
    return getattr(importlib.import_module(f"chinchilla.{_HOMES.get(name, f'verbs.{name}')}"), name)

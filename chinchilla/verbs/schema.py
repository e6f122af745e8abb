"""The configuration tree as JSON Schema, for editors and for reading."""

from typing import Any

from chinchilla.config.run import Run


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe: every key of `Run`, with its type, default and description, and `extends`."""
    tree = Run.model_json_schema()
    extends = {"type": "string", "description": "a recipe this one builds on, relative to this file"}
    tree["properties"] = {"extends": extends, **tree["properties"]}
    return tree

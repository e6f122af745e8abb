import json
from pathlib import Path
from typing import Any

from chinchilla.config.load import keys
from chinchilla.verbs.schema import schema

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def leaves(tree: dict[str, Any], definitions: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    found = {}
    for name, field in tree["properties"].items():
        options = [field, *field.get("anyOf", ())]  # a table that may be left out is one option, nothing the other
        inner = next((definitions[ref] for each in options if (ref := each.get("$ref", "").rpartition("/")[2])), None)
        found |= leaves(inner, definitions, f"{prefix}{name}.") if inner else {prefix + name: field}
    return found


def test_the_schema_has_every_key_and_no_other():
    tree = schema()
    assert leaves(tree, tree["$defs"]).keys() == {"extends", *keys()}
    assert tree["required"] == ["task", "data", "budget"]
    assert tree["additionalProperties"] is False
    assert json.loads(json.dumps(tree)) == tree


def test_numbers_with_units_may_be_text():
    tree = schema()
    found = leaves(tree, tree["$defs"])
    for key in ("budget.time", "budget.flops", "limits.size", "limits.memory", "train.batch_tokens"):
        assert {"type": "string"} in found[key]["anyOf"] and {"type": "number"} in found[key]["anyOf"], key


def test_the_page_on_configuration_names_every_key():
    text = PAGE.read_text("utf-8")
    assert not [key for key in keys() if f"`{key.rpartition('.')[2]}`" not in text]

"""What a plan keeps of the facts that it was made from, and those facts read back from it."""

from chinchilla.config.plan import Plan, Rows
from chinchilla.planning.search import Facts


def rows_of(facts: Facts) -> Rows:
    """What a plan does not say elsewhere."""
    return Rows(**facts.model_dump(include=set(Rows.model_fields)))


def facts_of(plan: Plan) -> Facts | None:
    """The facts that a plan was made from; None of a plan that did not keep its rows."""
    if plan.rows is None:
        return None
    return Facts(
        task=plan.task,
        vocab_size=plan.shape.vocab_size,
        unique_tokens=plan.unique_tokens,
        bytes_per_token=plan.bytes_per_token,
        num_classes=plan.shape.num_classes,
        stem=plan.shape.stem,
        boxes=plan.shape.boxes,
        **plan.rows.model_dump(),
    )

"""What a plan keeps of its choice: the shapes that were weighed, and the law's frontier."""

import torch

from chinchilla.config.plan import Plan
from chinchilla.config.shape import Shape
from chinchilla.planning.front import considered
from chinchilla.planning.frontier import frontier
from chinchilla.planning.laws import FLOPS_PER_PARAM_TOKEN
from chinchilla.planning.room import Room
from chinchilla.planning.search import Facts
from chinchilla.training.allocator import used_bytes
from chinchilla.verbs.choice import Choice


def with_choice(made: Plan, choice: Choice, facts: Facts, room: Room) -> Plan:
    """The plan with what it was chosen among, and with its law's best sizes where a law chose."""
    process_bytes = used_bytes(torch.device(made.machine.device))
    # What the choice found to be held for each byte that is counted.
    held_a_byte = choice.needs_bytes / room.peak(choice.shape, choice.recompute)

    def held(shape: Shape) -> float:
        way = room.way(shape)
        return process_bytes + held_a_byte * room.peak(shape, way is None or way)

    law = choice.own or choice.law
    flops = FLOPS_PER_PARAM_TOKEN * made.num_params * made.predicted["tokens"].p50
    return made.model_copy(
        update={
            "considered": considered(made, choice.rivals, facts.request, held),
            "frontier": frontier(law, flops) if law else None,
        }
    )

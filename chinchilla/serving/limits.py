"""How much a server takes on; every bound has a default that holds."""

from typing import Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from chinchilla.config.frozen import Frozen


class Limits(Frozen):
    """Caps on requests, queue, batches and time.

    `texts` bounds the questions of a request, whatever they are, and `image_body_bytes` its size where they are images.
    `image_pixels` bounds what a request's images have together: a small file may hold a large image, and be many.
    `batch_rows` questions are answered together; `waiting_rows` may wait, after which requests are refused.
    `gather_s` is how long a busy engine waits for a batch to fill; an idle one never waits.
    """

    body_bytes: PositiveInt = 1_000_000
    image_body_bytes: PositiveInt = 12_000_000
    image_pixels: PositiveInt = 160_000_000
    texts: PositiveInt = 64
    new_tokens: PositiveInt = 1024
    beam_size: PositiveInt = 8
    batch_rows: PositiveInt = 16
    waiting_rows: PositiveInt = 256
    gather_s: NonNegativeFloat = 0.002
    request_s: PositiveFloat = 120.0
    receive_s: PositiveFloat = 20.0
    drain_s: PositiveInt = 30

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.texts > self.waiting_rows:
            raise ValueError(f"texts ({self.texts}) cannot exceed waiting_rows ({self.waiting_rows})")
        return self

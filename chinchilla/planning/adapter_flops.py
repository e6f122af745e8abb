"""FLOPs of training an adapter: nothing is spent on gradients that nobody needs.

A frozen matrix needs none, nor does what comes before the first thing that is trained.
"""

from chinchilla.config.adapter import Adapter
from chinchilla.config.shape import Shape
from chinchilla.planning.count import Batch, Flops, Product, flops, parameters, products


def trained_flops(shape: Shape, adapter: Adapter | None, batch: Batch) -> Flops:
    """As `count.flops`, of a pass that trains an adapter alone, where there is one.

    AdaLoRA's penalty, products of its own factors, is left out.
    """
    if adapter is None:
        return flops(shape, batch)
    walk, found = _Walk(shape, adapter), products(shape, batch)
    backward = sum(walk.backward(product) for product in found)
    return Flops(sum(product.flops for product in found) + walk.added, backward + 2 * walk.added - walk.spared)


def trained_flops_per_token(shape: Shape, adapter: Adapter | None, batch: Batch) -> float:
    """The same for each labelled token of `batch`."""
    return trained_flops(shape, adapter, batch).step / batch.loss_rows


class _Walk:
    """Goes over the products in order of execution, and keeps in mind which values need a gradient.

    `reached` is that of a side's residual stream; `query`, `kv` and `hidden` are of the branch at hand (of its own keys
    the norm may be trained where the values are frozen: they count with the query). `added` are the adapters' FLOPs
    forward, `spared` those of their backward pass that are not spent.
    """

    def __init__(self, shape: Shape, adapter: Adapter) -> None:
        self.shape, self.adapter = shape, adapter
        self.names = parameters(shape)
        self.norms = "norms" in adapter.also
        first = self.norms and (shape.embed_norm or shape.norm_order == "pre")
        self.reached = {"encoder": first, "decoder": first}
        self.query = self.kv = self.hidden = False
        self.added = self.spared = 0

    def backward(self, product: Product) -> int:
        """FLOPs of a product's backward pass, its adapter's apart."""
        side, _, leaf = product.name.partition(".")
        if side not in self.reached:
            return self._outside(product)
        # layers.3.attention.qkv
        _, _, leaf = leaf.split(".", 2)
        needs = self.reached[side]
        match leaf:
            case "attention.qkv":
                self.kv = self._through(product, needs)
                self.query = self.kv or (self.norms and self.shape.qk_norm)
            case "attention.scores":
                return 2 * product.flops * self.query
            case "cross.query":
                self.query = self._through(product, needs)
            case "cross.kv":
                needs = self.reached["encoder"]
                self.kv = self._through(product, needs)
            case "cross.scores":
                return product.flops * (self.query + self.kv)
            case "attention.values" | "cross.values":
                return product.flops * ((self.query or self.kv) + self.kv)
            case "mlp.up":
                self.hidden = self._through(product, needs)
            case "attention.out" | "cross.out" | "mlp.down":
                needs = self.hidden if leaf == "mlp.down" else self.query or self.kv
                self.reached[side] |= self._through(product, needs) or self.norms
        return product.flops * needs

    def _through(self, product: Product, needs: bool) -> bool:
        """Whether what comes out of an adapted or plain map needs a gradient, where what goes in `needs` one."""
        if not self.adapter.adapts(product.name):
            return needs
        rank = self.adapter.first_rank
        inward = product.n if self.adapter.kind == "bottleneck" else product.k
        first, second = (2 * product.m * width * rank for width in (inward, product.n))
        self.added += first + second
        self.spared += 0 if needs else first
        return True

    def _outside(self, product: Product) -> int:
        """Stems come before all that is trained, heads after."""
        if product.name.startswith("embed."):
            return 0
        decodes = self.shape.num_decoder_layers > 0 and not product.name.startswith("encoder_")
        needs = self.reached["decoder" if decodes else "encoder"]
        weight = f"{product.name}.weight"
        return product.flops * (needs + (weight in self.names and self.adapter.trains(weight)))

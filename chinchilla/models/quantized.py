"""Int8 modules: weights int8 with one scale a row, activations made int8 at run time; fp32 in and out.

In `state_dict`, and so on disk, a matrix is two plain tensors: `weight` (rows, columns) int8 and `scale` (rows,) fp32,
whose product is the matrix. At its first use a layer packs the matrix for its kernel and lets go of it; reading the
state unpacks it again, bit for bit. A tied head has no matrix of its own: it packs the embedding's.
"""

import functools
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla.config.errors import UsageError
from chinchilla.models.bottleneck import Bottleneck, narrowed
from chinchilla.models.head import IGNORE, PIECE_TOKENS, TokenHead
from chinchilla.models.transformer import Transformer
from chinchilla.models.weights import own_tensors

log = logging.getLogger("chinchilla")

SCHEME = "int8-dynamic"
"""What `config.json` calls a model made of these modules."""

SMALLEST_PEAK = 1e-35
"""A row whose largest entry is smaller counts as zero: its scale would leave fp32's normal numbers."""

FEW_ROWS = 8
"""Inputs of up to so many rows share one scale: the beams of one sentence are alike, and scaling them would cost more
than it saves them."""


class Int8Rows(NamedTuple):
    """A matrix `scale[:, None] * weight` and a bias.

    `weight` (rows, columns) int8 in [-127, 127]; `scale` (rows,) fp32, positive; `bias` (rows,) fp32.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


def to_rows(weight: Tensor, bias: Tensor | None = None) -> Int8Rows:
    """Round a matrix `(rows, columns)` to int8, each row's largest entry at ±127.

    Clipping below the largest entry, as pays with 4 bits, only loses at 8: 43.2 dB falls to 38.3 at 0.95 of it.
    """
    weight = weight.detach().float()
    peak = weight.abs().amax(1)
    scale = torch.where(peak > SMALLEST_PEAK, peak / 127, 1.0)
    rounded = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8Rows(rounded, scale, None if bias is None else bias.detach().float())


class Int8Kernel(Protocol):
    """A matrix packed for products with it: all that has to be written to put another engine underneath."""

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (…, columns) fp32, of at least two dimensions → (…, rows) fp32."""

    def unpack(self) -> Tensor:
        """`Int8Rows.weight` as it was packed, bit for bit."""


class EngineKernel:
    """torch's own int8 engine (FBGEMM on x86, QNNPACK on ARM).

    The fastest there is in torch 2.13, and due for removal from it. `reduce_range` gives up one bit of the
    activations, which CPUs without VNNI need so that their sums of pairs stay within 16 bits.
    """

    def __init__(self, rows: Int8Rows, reduce_range: bool = False) -> None:
        self.reduce_range = reduce_range
        zero = torch.zeros(len(rows.scale), dtype=torch.int64)
        with warnings.catch_warnings():
            # It announces the removal; this class is the one place to change when that comes.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            matrix = torch._make_per_channel_quantized_tensor(rows.weight, rows.scale.double(), zero, 0)
            self.packed = torch.ops.quantized.linear_prepack(matrix, rows.bias)
        # The operator without torch.ops' wrapper, which looks through the arguments at every call: 4 µs.
        self.multiply = torch.ops.quantized.linear_dynamic.default._op

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (…, columns) fp32 → (…, rows) fp32."""
        # Else torch asks the packed matrix for `__torch_function__`, and the C++ exceptions that say it has none
        # take 12 to 20 µs: more than the product itself.
        with torch._C.DisableTorchFunctionSubclass():
            return self.multiply(x, self.packed, self.reduce_range)

    def unpack(self) -> Tensor:
        """The int8 matrix (rows, columns), bit for bit."""
        matrix, _ = torch.ops.quantized.linear_unpack(self.packed)
        return matrix.int_repr()


class PlainKernel:
    """The same arithmetic in plain torch: the reference, and the fallback where there is no engine."""

    def __init__(self, rows: Int8Rows) -> None:
        self.rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        """`x` (…, columns) fp32 → (…, rows) fp32."""
        weight, scale, bias = self.rows
        if x.numel() == 0:
            return x.new_zeros(*x.shape[:-1], len(weight))
        levels, step = to_levels(x)
        product = F.linear(levels, weight.float()) * (step * scale)
        return product if bias is None else product + bias

    def unpack(self) -> Tensor:
        """The int8 matrix (rows, columns)."""
        return self.rows.weight


def to_levels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round `x` to 256 levels, one of them zero, that span the whole tensor: whole numbers in fp32, and their step.

    The engine's rule, its least step included: below a span of 0.016 precision falls off.
    """
    low, high = x.min().clamp_max(0), x.max().clamp_min(0)
    step = ((high - low) / 255).clamp_min(6.1e-5)
    zero = (-low / step).round()
    return (x / step).round().add_(zero).clamp_(0, 255).sub_(zero), step


Pack = Callable[[Int8Rows], Int8Kernel]


@functools.cache
def fastest_kernel() -> Pack:
    """The engine, if it is there and gives right answers on this CPU; else, with a warning in the log, plain torch."""
    for reduce_range in (False, True):
        kernel = functools.partial(EngineKernel, reduce_range=reduce_range)
        fault = _fault(kernel)
        if fault is None:
            return kernel
    log.warning("torch's int8 engine cannot be used here (%s); int8 models will be right, but slow", fault)
    return PlainKernel


def _fault(kernel: Pack) -> str | None:
    """Why a kernel cannot be used; None when it can.

    The product is made of the largest entries there are, so that a sum that saturates shows.
    """
    rows = Int8Rows(torch.full((32, 64), 127, dtype=torch.int8), torch.ones(32), None)
    x = torch.ones(2, 64)
    try:
        packed = kernel(rows)
        found, kept = packed(x), packed.unpack()
    except (RuntimeError, AttributeError) as error:  # an operator that is missing, or not built for this machine
        return str(error).splitlines()[0]
    if not torch.equal(kept, rows.weight):
        return "it does not give the weights back"
    return None if torch.allclose(found, PlainKernel(rows)(x), rtol=0.01) else "its sums overflow"


class Int8Linear(nn.Module):
    """Takes the place of `nn.Linear`. `weight` is empty while the kernel has it, unless another module shares it."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, rows: Int8Rows, shared: bool = False) -> None:
        super().__init__()
        self.shared = shared
        self.kernel: Int8Kernel | None = None
        self.register_buffer("weight", rows.weight, persistent=not shared)
        self.register_buffer("scale", rows.scale, persistent=not shared)
        self.register_buffer("bias", rows.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (batch, …, columns) → (batch, …, rows) fp32."""
        kernel = self.kernel
        if kernel is None:
            kernel = self.kernel = self._pack()
        x = x.float()
        if x.numel() <= FEW_ROWS * x.shape[-1]:
            return kernel(x)
        # The kernel rounds by one step for all rows, and one token's peak would set it for the whole batch: a step
        # a token (ZeroQuant: Yao 2022, section 4.1), by bringing every row to the same peak before and back after.
        # Not by `aminmax` or `vector_norm`, which take ten times as long in torch 2.13.
        peak = x.abs().amax(-1, keepdim=True).clamp_min_(SMALLEST_PEAK)
        product = kernel(x / peak)
        return product.mul_(peak) if self.bias is None else torch.addcmul(self.bias, product - self.bias, peak)

    def _pack(self) -> Int8Kernel:
        kernel = fastest_kernel()(Int8Rows(self.weight, self.scale, self.bias))
        if not self.shared:
            self.weight = self.weight.new_empty(0)
        return kernel

    def _unpack(self) -> None:
        if self.kernel is not None and not self.shared:
            self.weight = self.kernel.unpack()
        self.kernel = None

    def _save_to_state_dict(self, *args: Any) -> None:
        self._unpack()
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(*args)


class Int8Bottleneck(Int8Linear):
    """Takes the place of `Bottleneck`: its map in int8, what is beside it in fp32."""

    adapter_down: Tensor
    adapter_down_bias: Tensor
    adapter_up: Tensor
    adapter_up_bias: Tensor

    def __init__(self, module: Bottleneck) -> None:
        super().__init__(to_rows(module.weight, module.bias))
        for name, parameter in module.named_parameters():
            if name.startswith("adapter_"):
                self.register_parameter(name, nn.Parameter(parameter.detach().float()))

    def forward(self, x: Tensor) -> Tensor:
        """`x` (batch, …, columns) → (batch, …, rows) fp32."""
        y = super().forward(x)
        return y + narrowed(y, self.adapter_down, self.adapter_down_bias, self.adapter_up, self.adapter_up_bias)


class Int8Embedding(nn.Module):
    """Takes the place of `nn.Embedding`: rows are looked up in int8 and multiplied by their scales."""

    weight: Tensor
    scale: Tensor

    def __init__(self, rows: Int8Rows) -> None:
        super().__init__()
        self.register_buffer("weight", rows.weight)
        self.register_buffer("scale", rows.scale)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids` (batch, length) int64 → (batch, length, dim) fp32."""
        return torch.embedding(self.weight, ids) * torch.embedding(self.scale[:, None], ids)


class Int8Head(Int8Linear):
    """Takes the place of `TokenHead`; a tied one shares the embedding's table."""

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` (…, dim) → logits (…, vocab_size) fp32."""
        # The kernel takes no single vector.
        return super().forward(hidden) if hidden.dim() > 1 else super().forward(hidden[None])[0]

    @torch.no_grad()
    def loss(self, hidden: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """What `TokenHead.loss` gives, for evaluation only: the smoothed sum and the plain sum in nats.

        `hidden` (batch, length, dim), `labels` (batch, length) with `IGNORE` where there is no loss.
        """
        labels = labels.flatten()
        rows = (labels != IGNORE).nonzero()[:, 0]
        total = plain = hidden.new_zeros(())
        for piece in rows.split(PIECE_TOKENS):
            logits = self(hidden.flatten(0, -2)[piece].float())
            total = total + F.cross_entropy(logits, labels[piece], reduction="sum", label_smoothing=smoothing)
            plain = plain + F.cross_entropy(logits, labels[piece], reduction="sum")
        return total, plain


def matrices(model: Transformer) -> list[str]:
    """The names of the modules that can be held in int8: linear layers and those with a bottleneck, embedding, head."""
    kinds = (nn.Linear, Bottleneck, nn.Embedding, TokenHead)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def replace_(model: Transformer, names: Iterable[str]) -> None:
    """Put the int8 forms in the place of the modules called `names`; the model is then for inference only."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _int8_form(model.get_submodule(name), model))
    model.requires_grad_(False).eval()


def _int8_form(module: nn.Module, model: Transformer) -> nn.Module:
    match module:
        case nn.Linear():
            return Int8Linear(to_rows(module.weight, module.bias))
        case Bottleneck():
            return Int8Bottleneck(module)
        case nn.Embedding():
            return Int8Embedding(to_rows(module.weight))
        case TokenHead():
            tokens = getattr(model.embed, "tokens", None)
            if model.shape.tied_head and isinstance(tokens, Int8Embedding):
                bias = None if module.bias is None else module.bias.detach()
                return Int8Head(Int8Rows(tokens.weight, tokens.scale, bias), shared=True)
            return Int8Head(to_rows(module.weight, module.bias))
    raise TypeError(f"no int8 form of {type(module).__name__}")


def is_quantized(model: nn.Module) -> bool:
    """Whether any part of the model is held in int8."""
    return any(isinstance(module, Int8Linear | Int8Embedding) for module in model.modules())


def num_params(model: nn.Module) -> int:
    """Weights of a model, floating-point or int8, tied ones once; the scales of int8 rows are not counted."""
    return sum(tensor.numel() for name, tensor in own_tensors(model).items() if not name.endswith(".scale"))


def describe(model: nn.Module) -> dict[str, Any] | None:
    """What `config.json` says under `quantization`; None for a model in floating point."""
    return {"scheme": SCHEME} if is_quantized(model) else None


def rebuild_(model: Transformer, quantization: Mapping[str, Any]) -> None:
    """Make a new `Transformer` into the form that a quantized folder's tensors fit.

    `quantization` is what the folder's `config.json` says under that key. `models.hub.read_model` calls this between
    making the model and filling it.

    Raises:
        UsageError: the folder is of a scheme that this version does not know.
    """
    scheme = quantization.get("scheme") if isinstance(quantization, Mapping) else quantization
    if scheme != SCHEME:
        raise UsageError(f"quantization scheme {scheme!r} is not one of {SCHEME}; a newer chinchilla made it")
    replace_(model, matrices(model))

"""What a run folder holds, with made-up numbers."""

import json
import math
from typing import Any

from chinchilla.config.considered import Considered
from chinchilla.config.estimate import Estimate
from chinchilla.config.machine import Machine, MatmulRate
from chinchilla.config.plan import Decision, Plan, Probe, Training
from chinchilla.config.shape import Shape
from chinchilla.store.run_folder import RunFolder

HOSTILE = "<script>alert(1)</script>"


def make_shape(dim: int, layers: int = 3) -> Shape:
    return Shape(
        vocab_size=8000,
        dim=dim,
        num_heads=dim // 64,
        num_kv_heads=dim // 64,
        head_dim=64,
        ffn_dim=4 * dim,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
    )


def make_probe(dim: int, time_s: float, loss: float, predicted_loss: float | None = None) -> Probe:
    return Probe(
        shape=make_shape(dim),
        precision="bf16",
        compile=False,
        num_params=dim * 24_000,
        tokens=int(time_s * 9000),
        time_s=time_s,
        step_time_s=0.2 * dim / 192,
        loss=loss,
        predicted_loss=predicted_loss,
    )


def make_machine() -> Machine:
    rate = MatmulRate(m=2048, k=192, n=768, precision="bf16", flops_per_s=2.1e11)
    return Machine(
        name="bench",
        device="cpu",
        threads=2,
        memory_bytes=24 * 10**9,
        torch_version="2.13.0",
        measured_at="2026-09-01T10:00:00+00:00",
        noise=0.06,
        matmul=(rate,),
        bytes_per_s=1.4e10,
        op_overhead_s=4e-6,
        has_compiler=True,
    )


def make_training() -> Training:
    return Training(
        steps=2100, batch_tokens=4096, accumulation=1, optimizer="muon", learning_rate=0.003,
        embedding_learning_rate=0.003, weight_decay=0.01, schedule="wsd", warmup_steps=100, decay_fraction=0.3,
        clip_norm=1.0, label_smoothing=0.1, dropout=0.0, ema_decay=0.0, reconstruct_weight=0.0, mask_rate=0.15,
        precision="bf16", compile=False, threads=2, eval_every=200, checkpoint_every=500, keep_checkpoints=2,
        log_every=10, seed=0,
    )  # fmt: skip


PREDICTED = {
    "step_time_s": Estimate.around(0.214, 0.08, "s", "measured"),
    "train_time_s": Estimate.around(452, 0.05, "s", "measured"),
    "tokens": Estimate.around(8.6e6, 0.06, "tokens", "measured"),
    "loss": Estimate(p10=2.21, p50=2.38, p90=2.62, unit="nats/token", source="guess"),
    "memory_bytes": Estimate.around(1.31e9, 0.1, "bytes", "measured"),
    "size_bytes": Estimate.around(18.8e6, 0.001, "bytes", "measured"),
    "flops": Estimate.around(2.4e14, 0.06, "FLOP", "measured"),
}
MEASURED = {
    "step_time_s": 0.221,
    "train_time_s": 461.0,
    "tokens": 8.5e6,
    "loss": 2.29,
    "memory_bytes": 1.52e9,
    "size_bytes": 18.81e6,
    "flops": 2.37e14,
}


def make_considered() -> tuple[Considered, ...]:
    """The probed shapes, smallest first; the two larger ones are beaten by the chosen one, of 192."""
    found = ((128, 2.47, True), (192, 2.38, True), (256, 2.41, False), (384, 2.61, False))
    return tuple(
        Considered(
            shape=make_shape(dim),
            num_params=dim * 24_000 + 112_000,
            size_bytes=4 * (dim * 24_000 + 112_000),
            loss=Estimate.around(loss, 0.1, "nats/token", "guess"),
            latency_s=Estimate.around(0.06 + dim / 2000, 0.5, "s", "guess"),
            memory_bytes=Estimate.around(8e8 + dim * 2.65e6, 0.1, "bytes", "guess"),
            on_front=on_front,
        )
        for dim, loss, on_front in found
    )


def make_plan() -> Plan:
    """A plan for translation in ten minutes, with probes and a reason for each choice."""
    decisions = (
        ("shape", "3+3×192, 4 heads of 64", "best loss of 5 probed shapes after 20 s each; 1.3 % ahead of 3+3×256"),
        ("precision", "bf16", "median product 1.9× faster than fp32 on this machine"),
        ("compile", "no", "would cost 61 s and earn back 38 s in this budget"),
        ("optimizer", "muon, learning rate 0.003", "matrices by Muon, embeddings by AdamW; tuned at this size"),
        ("batch_tokens", "4096", "largest batch that still gives more than 2000 steps"),
        ("steps", "2100", "452 s at 0.214 s a step, 8 % kept back for evaluation and saving"),
    )
    first = ((128, 8.0, 5.21), (192, 8.0, 5.12), (256, 8.0, 5.19), (384, 8.0, 5.62))
    second = ((192, 20.0, 4.31, 2.38), (256, 20.0, 4.36, 2.41))
    return Plan(
        task="translate",
        shape=make_shape(192),
        training=make_training(),
        num_params=4_720_000,
        flops_per_token=2.8e7,
        unique_tokens=2_900_000,
        tokens_per_step=4090.0,
        bytes_per_token=3.9,
        machine=make_machine(),
        predicted=PREDICTED,
        decisions=tuple(Decision(name=n, value=v, reason=r) for n, v, r in decisions),
        probes=tuple(make_probe(*run) for run in (*first, *second)),
        considered=make_considered(),
        planning_time_s=96.0,
        budget_time_s=600.0,
    )


def make_samples() -> list[dict[str, str]]:
    return [
        {
            "source": "Click the button to open the dialog.",
            "reference": "Klicken Sie auf die Schaltfläche, um den Dialog zu öffnen.",
            "output": "Klicken Sie auf die Schaltfläche, um das Dialogfeld zu öffnen.",
        },
        {"source": "Ünïcödé 中文 العربية", "reference": "中文", "output": HOSTILE},
        *({"source": f"Sentence {n}.", "reference": f"Satz {n}.", "output": f"Satz {n}."} for n in range(6)),
    ]


def write_metrics(folder: RunFolder) -> None:
    """Journal lines written at once: fsyncing each would be the slowest part of these tests."""
    lines = []
    for step in range(10, 2101, 10):
        wave = math.sin(step * 12.9898) * 43758.5453 % 1 - 0.5
        loss = 2.1 + 7.0 * (step / 10) ** -0.55 + 0.12 * wave
        rate = 0.003 * min(1, step / 100, (2100 - step) / 630)
        speed = 18_900 + 900 * wave - (4000 if 900 < step < 1000 else 0)
        line = {"step": step, "tokens": step * 4090, "time_s": step * 0.22}
        speeds = {"tokens_per_s": speed, "peak_fraction": speed / 41_000}
        lines.append(line | speeds | {"loss": loss, "learning_rate": rate})
        if step % 200 == 0:
            lines.append(line | {"valid_loss": 2.05 + 7.0 * (step / 10) ** -0.57})
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_compression(parent: str) -> dict[str, Any]:
    samples = [
        {"source": s["source"], "reference": s["reference"], "before": s["output"], "after": s["output"][:40]}
        for s in make_samples()
    ]
    return {
        "parent": parent,
        "before": {
            "size_bytes": 18_810_000,
            "latency_p50_s": 0.0712,
            "latency_p90_s": 0.118,
            "metrics": {"bleu": 22.84, "chrf": 46.31},
        },
        "after": {
            "size_bytes": 4_860_000,
            "latency_p50_s": 0.0488,
            "latency_p90_s": 0.081,
            "metrics": {"bleu": 22.71, "chrf": 46.22},
        },
        "ratios": {"size": 3.87, "latency_p50": 1.46},
        "threads": 2,
        "scheme": "int8 dynamic",
        "samples": samples,
    }


def make_results() -> dict[str, Any]:
    return {
        "metrics": {"bleu": 22.84, "chrf": 46.31},
        "samples": make_samples(),
        "valid_loss": 2.29,
        "train_time_s": 461.0,
        "tokens": 8.5e6,
    }

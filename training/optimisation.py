"""One optimisation step: AdamW, learning rate schedule, mixed precision, gradient clipping, averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fusioner_rt.errors import UsageError
from training.model import Fusioner
from training.recipe import Plan

ENCODERS = ("image_encoder", "text_encoder")


class Optimiser:
    """AdamW on the trained parameters (paper 4.1). Frozen encoders are not optimised, averaged or copied.

    aligned: the word projection starts aligned and has its own learning rate (`Plan.word_rate`), as the directions of an
    aligned residual always have.
    steps: of the whole run. warmup: the first of them, in which the learning rate grows.
    """

    def __init__(
        self, model: Fusioner, plan: Plan, aligned: bool, steps: int, warmup: int, device: torch.device
    ) -> None:
        self.plan, self.device = plan, device
        self.trained = nn.ModuleDict({name: part for name, part in model.named_children() if name not in ENCODERS})
        word_projection, directions = list(model.project_words.parameters()), []
        if model.aligned is not None:
            directions = [*model.aligned.words.parameters(), *model.aligned.pixels.parameters()]
        slow = {id(p) for p in (*word_projection, *directions)}
        others = [p for p in self.trained.parameters() if id(p) not in slow]
        self.parameters = others + word_projection + directions
        self.adamw = torch.optim.AdamW(
            [
                {"params": others, "lr": plan.rate},
                {"params": word_projection, "lr": plan.rate * (plan.word_rate if aligned else 1.0)},
                *([{"params": directions, "lr": plan.rate * plan.word_rate}] if directions else []),
            ],
            weight_decay=plan.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, lambda step: rate(step, steps, warmup))
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")
        self.average = AveragedModel(self.trained, multi_avg_fn=get_ema_multi_avg_fn(plan.ema)) if plan.ema else None

    @property
    def steps(self) -> int:
        """Steps done."""
        return self.schedule.last_epoch

    @property
    def rate(self) -> float:
        """Learning rate of the next step; the word projection may have another."""
        return float(self.adamw.param_groups[0]["lr"])

    def autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.plan.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.plan.precision != "fp32")

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """Applies and clears the gradients."""
        self.scaler.unscale_(self.adamw)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.schedule.step()
        self.adamw.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.trained)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has its averaged weights inside this context; without `Plan.ema` it keeps the last ones."""
        if self.average is None:
            yield
            return
        last = {name: value.clone() for name, value in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.trained.load_state_dict(last)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The arguments of `restore`: tensors by name, and plain JSON."""
        tensors = {f"model.{name}": value for name, value in self.trained.state_dict().items()}
        for index, values in self.adamw.state_dict()["state"].items():
            tensors |= {f"adamw.{index}.{key}": value for key, value in values.items()}
        if self.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        return tensors, {"steps": self.steps, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.trained.load_state_dict(_without_prefix("model.", tensors))
        if self.average is not None:
            self.average.load_state_dict(_without_prefix("average.", tensors))
        saved = self.adamw.state_dict()
        saved["state"] = {}
        for name, value in _without_prefix("adamw.", tensors).items():
            index, key = name.split(".")
            saved["state"].setdefault(int(index), {})[key] = value
        self.adamw.load_state_dict(saved)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(values["scaler"])
        self.schedule.last_epoch = values["steps"]
        for group, peak, factor in zip(
            self.adamw.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = peak * factor(values["steps"])


def check_precision(plan: Plan, device: torch.device) -> None:
    """Raises UsageError where the device cannot train in the plan's precision."""
    if plan.precision == "fp16" and device.type != "cuda":
        raise UsageError("precision fp16 needs a CUDA device to train on", "on a CPU use --precision bf16 or fp32")
    if plan.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise UsageError("this GPU has no bf16 arithmetic", "use --precision fp16 or fp32")


def rate(step: int, steps: int, warmup: int) -> float:
    """Fraction of the peak learning rate: linear over `warmup` steps, then a cosine to 0 (paper 4.1)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, steps - warmup))))


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

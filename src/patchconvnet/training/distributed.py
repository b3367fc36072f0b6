"""Batch norm over the global batch: torch's and timm's own on GPUs, and one for CPUs, which theirs refuse."""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from patchconvnet.errors import UserError
from patchconvnet.models.layers import BatchNorm


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` on (B, C, H, W) whose training statistics are those of all processes' batches together."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        values = x.float()
        count = values.numel() // values.shape[1] * dist.get_world_size()  # all processes hold equal parts
        mean = _Sum.apply(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), momentum)
        normalised = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            normalised = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return normalised.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; since each one's value is in every one's sum, so are the gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


# BatchNorm.forward, on patches (B, h, w, C), permutes them and calls the next class's forward


class CpuSyncPatchNorm(BatchNorm, CpuSyncBatchNorm):
    """The same on patches (B, h, w, C)."""


class SyncPatchNorm(BatchNorm, nn.SyncBatchNorm):
    """torch's on patches (B, h, w, C)."""


class CpuSyncBatchNormAct(CpuSyncBatchNorm):
    """The same for timm's batch norm with its activation, as timm's `SyncBatchNormAct` is for GPUs."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


ON_CPU: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: CpuSyncBatchNorm,
    BatchNorm: CpuSyncPatchNorm,
    BatchNormAct2d: CpuSyncBatchNormAct,
}
ON_GPU: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: nn.SyncBatchNorm,
    BatchNorm: SyncPatchNorm,
    BatchNormAct2d: SyncBatchNormAct,
}


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Let every batch norm of the model use the global batch's statistics; parameters and state dict are kept.

    As timm's `convert_sync_batchnorm`, which does not know norms of patches or CPUs.

    Raises:
        UserError: for a kind of batch norm that is not known here.
    """
    kinds = ON_CPU if device.type == "cpu" else ON_GPU
    for name, module in model.named_modules():
        synchronised = kinds.get(type(module))
        if synchronised is not None:
            # swapped in place: the parameters, which an optimizer may hold already, stay the same objects
            module.__class__ = synchronised
            module.process_group = None  # of torch's: all processes
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(f"{name}, a {type(module).__name__}, cannot be trained on more than one device")

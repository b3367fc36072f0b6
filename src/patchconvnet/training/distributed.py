"""Batch norm over the global batch: timm's conversion on GPUs, and norms of ours for CPUs, which torch's refuses."""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
# what timm's conversion gets right: not other subclasses, whose forward it would replace
CONVERTED_BY_TIMM = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d}


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of the model use the global batch's statistics; parameters and state dict are kept.

    On GPUs `timm.layers.convert_sync_batchnorm` converts torch's and timm's norms, and `SyncPatchNorm` takes the place
    of ours, whose channels are the last axis. The conversion is tested; training on several GPUs was not, as
    none were at hand. On CPUs all of them are replaced by norms of this file, which are tested with two processes.

    Args:
        model: changed in place, unless it is a norm itself.
        device: the kind of device that it will be trained on.

    Returns:
        The model, or what took its place.

    Raises:
        UserError: for a kind of batch norm that is not known here.
    """
    known = ON_CPU.keys() if device.type == "cpu" else {BatchNorm, *CONVERTED_BY_TIMM}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in known:
            raise UserError(f"{name}, a {type(module).__name__}, cannot be trained on more than one device")
    return _synchronised(model, device)


def _synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    # the parameters, which an optimizer may hold already, stay the same objects
    if type(module) in ON_CPU and device.type == "cpu":
        module.__class__ = ON_CPU[type(module)]
    elif type(module) is BatchNorm:
        module.__class__ = SyncPatchNorm
        module.process_group = None  # type: ignore[assignment]  # of torch's: all processes
    elif isinstance(module, _BatchNorm):
        return convert_sync_batchnorm(module)
    for name, child in module.named_children():
        module.add_module(name, _synchronised(child, device))
    return module

"""Low-rank adapters by peft, and the weights of a model as others are to see them: whole, merged, plainly named.

The only file that imports peft. Covered: adapters on linear layers; parameters in one piece, sharded by FSDP2
(DTensor) or partitioned by DeepSpeed ZeRO-3. Not covered: DoRA, quantised base weights, FSDP1, mixtures of experts
whose saved names differ from the names in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cacherl.train.checkpoints import whole_folder
from cacherl.train.lora_settings import LoraSettings

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""What activation checkpointing and torch.compile put into the names of parameters."""


def with_lora(model: PreTrainedModel, settings: LoraSettings, *, seed: int) -> PreTrainedModel:
    """The model with fresh adapters on every linear layer but the head, its own weights frozen; it still does the same.

    What comes back is a PeftModel: no subclass, but it hands on whatever training asks of a model. Equal seeds give
    equal adapters; torch's global random state is left as it was found. Adapters are float32 also on a bfloat16 model,
    as they are what the optimizer moves. Works with and without gradient checkpointing.
    """
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    # Reentrant checkpointing gives no gradient to what lies behind inputs that need none, and all below is frozen.
    model.enable_input_require_grads()  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, adapted)


def merged_weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the plain model, as save_pretrained would write them: adapters merged, tied weights once.

    The model itself stays as it is. Values that needed neither merging nor gathering share its memory: copy what is
    kept. Sharded parameters are gathered one at a time, so every process must go through to the end.
    """
    plain = _plain(model)
    adapted = {name: module for name, module in plain.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in plain.named_parameters():
        if ".lora_" in name:
            continue
        owner, in_adapted, leaf = name.rpartition(".base_layer.")
        with torch.no_grad():
            value = _whole(parameter)
            if in_adapted and leaf == "weight":
                # In float32 and rounded once: a bfloat16 weight loses what is smaller than its last digit either way.
                value = (value.float() + _update(adapted[owner])).to(value.dtype)
        yield _saved_name(f"{owner}.{leaf}" if in_adapted else name), value


def save_model(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The merged model and its tokenizer, as from_pretrained and vLLM load them; the folder is there whole or not.

    Every process must call it; the main one writes, and none returns before it has. The weights keep the base's dtype:
    in bfloat16 an update below a weight's last digit (1/256 of it) is not in what is saved.
    """
    is_main = not _is_distributed() or torch.distributed.get_rank() == 0
    weights: dict[str, Tensor] = {}
    for name, value in merged_weights(model):
        if is_main:
            weights[name] = value.cpu()
    if is_main:
        with whole_folder(folder) as fresh:
            _plain(model).save_pretrained(fresh, state_dict=weights)
            tokenizer.save_pretrained(fresh)
    if _is_distributed():
        torch.distributed.barrier()


def _plain(model: torch.nn.Module) -> PreTrainedModel:
    """The model inside what training wraps around it; adapters may still sit in its layers."""
    inner = getattr(model, "module", model)  # DistributedDataParallel, DeepSpeedEngine
    inner = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    assert isinstance(inner, PreTrainedModel)
    return inner


def _saved_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _update(layer: LoraLayer) -> Tensor:
    """What the active adapters add to the layer's weight, float32 [out, in]: scaling * B @ A."""
    total: Tensor | None = None
    for adapter in layer.active_adapters:
        down, up = (_whole(matrices.get_parameter(f"{adapter}.weight")) for matrices in (layer.lora_A, layer.lora_B))
        update = layer.scaling[adapter] * (up.float() @ down.float())
        total = update if total is None else total + update
    assert total is not None, "a layer with adapters has an active one"
    return total


def _whole(parameter: Tensor) -> Tensor:
    """The parameter in one piece, wherever it lay."""
    if isinstance(parameter, DTensor):
        # Shards that are offloaded lie on the CPU, where the mesh's backend cannot gather.
        moved = parameter.detach().to(parameter.device_mesh.device_type)
        assert isinstance(moved, DTensor)
        return moved.full_tensor()
    if hasattr(parameter, "ds_id"):
        import deepspeed  # where its sharding is in use, it is there

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()

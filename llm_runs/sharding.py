"""Weights, gradients and optimiser spread over the processes: FSDP2 by accelerate, ZeRO by DeepSpeed, both through the Trainer.

What is asked for is checked once the Trainer has set it up (`ShardedTrainer`), because where a combination is not supported the libraries
fall back to a whole copy in every process without a word.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from llm_runs import checkpoints, processes
from llm_runs.errors import InputError

Sharding = str  # "none", "fsdp", "zero2" or "zero3", see `TrainingConfig.sharding`


# What `accelerate launch --use_fsdp` and `--use_deepspeed` leave in the environment; accelerate itself writes there, too, later on.
_SWITCHES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
_LAUNCHED_WITH = [name for name in _SWITCHES if os.environ.get(name, "false").lower() == "true"]


def arguments(kind: Sharding) -> dict[str, Any]:
    """What `TrainingArguments` must be given for it. InputError where it cannot be had."""
    if _LAUNCHED_WITH:
        raise InputError(
            f"the launcher was told to shard ({', '.join(_LAUNCHED_WITH)}): leave that out and set training.sharding=fsdp, zero2 or zero3"
        )
    for name in _SWITCHES:
        os.environ.pop(name, None)  # of an earlier training in this process
    if kind == "none":
        return {}
    if processes.launched() == 1 and processes.size() == 1:
        raise InputError(
            f"training.sharding={kind} spreads the model over processes, but there is one: start several (torchrun "
            "--nproc_per_node 8 -m llm_runs ...), or set training.sharding=none"
        )
    if kind == "fsdp":
        # Each process writes its own shards; they are read again by any number of processes.
        return {
            "fsdp": True,
            "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
            # Else the gradients of all but the last forward pass of a step would lie whole in every process.
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
        }
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"training.sharding={kind} needs DeepSpeed: pip install deepspeed (or take training.sharding=fsdp)"
        )
    settings: dict[str, Any] = {
        "zero_optimization": {"stage": int(kind[-1])},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
    }
    return {"deepspeed": settings}


class ShardedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that shards as its arguments say, also on a CPU, or refuses to train."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.add_callback(_Check(self))

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's own; accelerate leaves sharding out on a CPU, where torch and DeepSpeed can do it: tests run it there."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if state.distributed_type != DistributedType.MULTI_CPU:
            return
        if self.args.fsdp:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        elif self.args.deepspeed:
            plugin = self.args.deepspeed_plugin
            plugin.set_mixed_precision("no")
            state.deepspeed_plugins = {"default": plugin}
            state.distributed_type = DistributedType.DEEPSPEED
            plugin.select(_from_accelerator_state=True)
            self.is_deepspeed_enabled = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer's own; the checkpoint is sealed when it is whole. One that was torn before goes first."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        processes.by_first(lambda: shutil.rmtree(folder, ignore_errors=True))
        super()._save_checkpoint(model, trial)
        processes.barrier()
        processes.by_first(lambda: checkpoints.seal(folder))


class _Check(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, size = self.trainer, processes.size()
        if trainer.accelerator.num_processes != size:  # then each would read the whole data
            raise InputError(
                f"{size} processes were started, but accelerate knows of {trainer.accelerator.num_processes}: start them with torchrun or "
                "accelerate launch"
            )
        if not (args.fsdp or args.deepspeed) or size == 1:
            return
        weights = list(trainer.model.parameters())
        whole = sum(shape.numel() for shape in map(_whole_shape, weights))
        held = sum(map(_held, weights))
        if args.fsdp or trainer.accelerator.state.deepspeed_plugin.zero_stage == 3:
            # Of all together, because small tensors may lie in one process; DeepSpeed fills up what does not divide.
            sharded = sum(processes.gather(held)) <= 1.5 * whole + size * len(weights)
        else:
            sharded = trainer.is_deepspeed_enabled and trainer.deepspeed.zero_optimization_stage() == 2
        if not sharded:
            raise InputError(
                f"the model was to be sharded over {size} processes, but this one holds {held} of its {whole} weights: the installed "
                "accelerate, transformers or DeepSpeed does not support it here; set training.sharding=none"
            )


def is_sharded(model: Any) -> bool:
    """Whether a forward pass of the model is one of all processes together, who gather its weights for it."""
    return isinstance(model, FSDPModule) or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def whole_state(model: Any) -> dict[str, Tensor] | None:
    """The weights of a sharded model in whole, on the CPU of the first process (empty in the others); None where it is not sharded.

    To be called by all processes.
    """
    if not is_sharded(model):
        return None
    if isinstance(model, FSDPModule):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))  # type: ignore[arg-type]
        return dict(state)
    import deepspeed

    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if processes.is_first():
                found[name] = parameter.detach().cpu().clone()
    return found


def _whole_shape(parameter: Tensor) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _held(parameter: Tensor) -> int:
    """Numbers of a weight that are in this process."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    partition = getattr(parameter, "ds_tensor", None)
    return parameter.numel() if partition is None else int(partition.numel())

"""Engines beside the plain loop of `sampling`: transformers' continuous batching, and vLLM.

An engine draws one completion of each prompt from the policy's distribution over the whole vocabulary, and gives its token ids (up to
and with an end) and their log-probabilities at temperature 1, whatever temperature and nucleus it drew from.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import tempfile
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from llm_runs.errors import InputError
from llm_runs.examples import Prompt
from llm_runs.logprobs import collate, completion_logits, token_logps

Drawn = tuple[list[int], list[float]]  # token ids, log-probabilities

REFILLS = 8  # continuous batching: prompts per call as a multiple of those at a time; a call is lost when interrupted
PAGE = 256  # tokens of a page of the cache, transformers' default
PREFILL = 1024  # tokens of a forward pass
GPU_SHARE = 0.5  # of the GPU's memory that vLLM may take: the policy stays beside it
_NO_VLLM = "sampling.engine=vllm: vLLM cannot be imported ({}). Install it (pip install vllm), or take continuous or transformers"


class Engine(Protocol):
    """One call of an engine. `slots`: sequences at a time. The same arguments give the same completions on the same device."""

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        ends: Collection[int],
        seed: int,
        slots: int,
    ) -> list[Drawn]:
        """Completions in the order of the prompts."""
        ...


def check(name: str) -> None:
    """Raise InputError, as sampling would, where the engine is not installed; to be known before hours of training."""
    if name == "vllm" and not importlib.util.find_spec("vllm"):
        raise InputError(_NO_VLLM.format("it is not installed"))


def resolve(name: str, device: torch.device) -> str:
    """The engine that "auto" stands for: on a GPU vLLM where it is installed, else continuous batching; on a CPU the plain loop."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "transformers"
    return "vllm" if importlib.util.find_spec("vllm") else "continuous"


def prompts_per_call(name: str, slots: int, count: int) -> int:
    """How many of `count` prompts an engine is given at once; vLLM gets all, because it takes long to start."""
    return {"continuous": REFILLS * slots, "vllm": max(count, 1)}.get(name, slots)


def version(name: str) -> str:
    """The package that draws, with its version."""
    package = "vllm" if name == "vllm" else "transformers"
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


def continuous(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    ends: Collection[int],
    seed: int,
    slots: int,
) -> list[Drawn]:
    """transformers' continuous batching over a paged cache: a sequence that ends makes room for the next prompt at once.

    Computes in the precision of the weights. Requests wait in the queue before the engine starts, so that its batches, and with them
    the random numbers of every sequence, do not depend on the timing of its thread.

    Raises:
        InputError: the engine failed.
        MemoryError: too little memory.
    """
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    slots = min(slots, len(prompts))
    longest = max(map(len, prompts)) + max_tokens
    config = ContinuousBatchingConfig(
        num_blocks=slots * -(-longest // PAGE) + 1,
        max_batch_tokens=max(PREFILL, slots),
        max_requests_per_batch=slots,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,  # sessions are too short to repay a capture
        return_logprobs=True,
        seed=seed % 2**32,
    )
    if plain.dtype == torch.float32 and hasattr(config, "auto_switch_to_flash"):
        config.auto_switch_to_flash = False  # which takes half precision only
    settings = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=top_p,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
    )
    found: dict[str, Any] = {}
    with torch.random.fork_rng(), _maskless_attention(plain):  # the engine seeds the global generator
        manager = plain.init_continuous_batching(generation_config=settings, continuous_batching_config=config)
        names = manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=max_tokens)
        manager.start()
        try:
            while len(found) < len(names):
                result = manager.get_result(timeout=1.0)
                if result is not None and result.is_finished():
                    found[result.request_id] = result
                elif result is None and not manager.is_running():
                    break
        finally:
            manager.stop(block=True)
            manager.destroy()
    _check([found.get(name) for name in names])
    drawn = [(found[name].generated_tokens, found[name].logprobs) for name in names]
    return drawn if temperature == top_p == 1.0 else _rescored(model, prompts, [ids for ids, _ in drawn], slots)


def vllm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    ends: Collection[int],
    seed: int,
    slots: int,
) -> list[Drawn]:
    """vLLM, started on a copy of the policy in a temporary folder and stopped afterwards. Every sequence has a seed of its own.

    Raises InputError where it is not installed, or the policy has adapters.
    """
    if isinstance(model, PeftModel):
        raise InputError(
            "sampling.engine=vllm samples whole models, and this one has adapters: take continuous or transformers, or leave "
            "training.lora out"
        )
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise InputError(_NO_VLLM.format(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        engine = LLM(
            model=folder,
            dtype=str(model.dtype).removeprefix("torch."),
            seed=seed % 2**32,
            max_num_seqs=slots,
            max_model_len=max(map(len, prompts)) + max_tokens,
            gpu_memory_utilization=GPU_SHARE,
            generation_config="vllm",  # no sampling settings of the model's own
            logprobs_mode="raw_logprobs",  # at temperature 1
        )
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        settings = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=-1,
                max_tokens=max_tokens,
                stop_token_ids=sorted(ends),
                seed=(seed + number) % 2**56,
                logprobs=0,  # of the drawn token alone
                detokenize=False,
            )
            for number in range(len(prompts))
        ]
        outputs = [request.outputs[0] for request in engine.generate(requests, settings, use_tqdm=False)]
        drawn = [
            (list(each.token_ids), [at[token].logprob for token, at in zip(each.token_ids, each.logprobs, strict=True)])
            for each in outputs
        ]
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return drawn


ENGINES: dict[str, Engine] = {"continuous": continuous, "vllm": vllm}


@contextlib.contextmanager
def _maskless_attention(model: PreTrainedModel) -> Iterator[None]:
    """sdpa meanwhile, where a training left FlexAttention, which continuous batching does not take."""
    own = model.config._attn_implementation
    if own == "flex_attention":
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if model.config._attn_implementation != own:
            model.set_attn_implementation(own)


def _check(results: Sequence[Any]) -> None:
    """Raise what went wrong in the engine's thread."""
    errors = [str(result.error) for result in results if result is not None and result.error is not None]
    if not errors and all(result is not None for result in results):
        return
    reason = " ".join(errors[0].split())[:300] if errors else "it stopped without a word"
    if "out of memory" in reason or "can't allocate memory" in reason:
        raise MemoryError(reason)
    raise InputError(f"sampling.engine=continuous failed: {reason}. Take sampling.engine=transformers")


@torch.no_grad()
def _rescored(
    model: PreTrainedModel, prompts: Sequence[Prompt], completions: Sequence[list[int]], size: int
) -> list[Drawn]:
    """Completions with their log-probabilities at temperature 1, by forward passes of `size` sequences."""
    drawn: list[Drawn] = []
    for start in range(0, len(prompts), size):
        ids = completions[start : start + size]
        batch = collate(prompts[start : start + size], ids).to(model.device)
        rows = token_logps(completion_logits(model, batch), batch).tolist()
        drawn += [(own, row[: len(own)]) for own, row in zip(ids, rows, strict=True)]
    return drawn

"""Training against a loop written out by hand, and what it must refuse, survive and never do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import objectives
from llm_runs import reference, training
from llm_runs.checkpoints import last_checkpoint
from llm_runs.config import LoRAConfig, ReferenceConfig, TrainingConfig
from llm_runs.errors import InputError
from llm_runs.examples import TokenPair, TokenSample
from llm_runs.microbatches import Microbatches
from llm_runs.models import tiny_random
from llm_runs.reference import ReferenceLogps, model_fingerprint
from llm_runs.training import TrainingError, train

VOCABULARY = 50


def tokens(generator: torch.Generator, low: int, high: int) -> tuple[int, ...]:
    length = int(torch.randint(low, high + 1, (), generator=generator))
    return tuple(torch.randint(1, VOCABULARY, (length,), generator=generator).tolist())


GENERATOR = torch.Generator().manual_seed(0)
PAIRS = [TokenPair(tokens(GENERATOR, 1, 5), tokens(GENERATOR, 1, 6), tokens(GENERATOR, 1, 6)) for _ in range(8)]
SAMPLES = [TokenSample(tokens(GENERATOR, 1, 5), tokens(GENERATOR, 2, 6)) for _ in range(8)]
TEXTS = [tokens(GENERATOR, 2, 9) for _ in range(8)]
CONFIG = TrainingConfig(
    steps=3,
    batch_size=8,
    reference_batch_size=8,
    pretraining_batch_size=8,
    learning_rate=1e-2,
    warmup_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
)
DPO = objectives.get("dpo", beta=0.1)
MAXPO = objectives.get("maxpo", beta=0.1, temperature=2.0)


def llama(*, tied: bool = False, seed: int = 0) -> PreTrainedModel:
    """Double precision, so that two computations of the same thing agree to many digits."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_random(["a"], vocabulary=300)[1]


@pytest.fixture(scope="module")
def stored(tokenizer: PreTrainedTokenizerBase) -> ReferenceLogps:
    return reference.compute(llama(), tokenizer, PAIRS, SAMPLES, ReferenceConfig(top_k=VOCABULARY))


def run(
    objective: objectives.Objective,
    stored: ReferenceLogps | Callable[[], ReferenceLogps] | None,
    out: Path,
    model: PreTrainedModel | None = None,
    config: TrainingConfig = CONFIG,
    seed: int = 0,
    **arguments: object,
) -> tuple[PreTrainedModel, pd.DataFrame]:
    model = model or llama()
    arguments = {"pairs": PAIRS, "reference_samples": SAMPLES, "pretraining": TEXTS, **arguments}
    return model, train(model, objective, reference=stored, config=config, seed=seed, out=out, **arguments)


def assert_same_weights(first: PreTrainedModel, second: PreTrainedModel, atol: float = 1e-9) -> None:
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        torch.testing.assert_close(
            a.detach(), b.detach(), atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


# A loop by hand: one unpadded sequence at a time, formulas written out.


def plain_rows(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits - logits.exp().sum(-1, keepdim=True).log()


def plain_logp(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    return sum(row[token] for row, token in zip(plain_rows(model, prompt, completion), completion, strict=True))


def dpo_loss(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = torch.tensor(0.0, dtype=torch.float64)
    for p in PAIRS:
        with torch.no_grad():
            adjustment = plain_logp(base, p.prompt_ids, p.chosen_ids) - plain_logp(base, p.prompt_ids, p.rejected_ids)
        margin = (
            plain_logp(policy, p.prompt_ids, p.chosen_ids)
            - plain_logp(policy, p.prompt_ids, p.rejected_ids)
            - adjustment
        )
        total = total + torch.log1p(torch.exp(-0.1 * margin)) / 8
    return total


def pair_term(policy: PreTrainedModel) -> Tensor:
    differences = [
        plain_logp(policy, p.prompt_ids, p.chosen_ids) - plain_logp(policy, p.prompt_ids, p.rejected_ids) for p in PAIRS
    ]
    return sum(-1 / (1 + torch.exp(-d / 2.0)) for d in differences) / 8


def maxpo_loss(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    return pair_term(policy) - 0.1 * sum(plain_logp(policy, s.prompt_ids, s.completion_ids) for s in SAMPLES) / 8


def maxpo_full_loss(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = pair_term(policy)
    for s in SAMPLES:
        with torch.no_grad():
            p = plain_rows(base, s.prompt_ids, s.completion_ids)
        q = plain_rows(policy, s.prompt_ids, s.completion_ids)
        total = total + 0.1 * (p.exp() * (p - q)).sum() / 8
    return total


def ipo_with_regularisers_loss(policy: PreTrainedModel, base: PreTrainedModel) -> Tensor:
    total = torch.tensor(0.0, dtype=torch.float64)
    for p in PAIRS:
        with torch.no_grad():
            adjustment = plain_logp(base, p.prompt_ids, p.chosen_ids) - plain_logp(base, p.prompt_ids, p.rejected_ids)
        chosen = plain_logp(policy, p.prompt_ids, p.chosen_ids)
        margin = chosen - plain_logp(policy, p.prompt_ids, p.rejected_ids) - adjustment
        total = total + ((margin - 1 / 0.4) ** 2 - 0.5 * chosen / len(p.chosen_ids)) / 8
    return total - 0.3 * sum(plain_logp(policy, text[:1], text[1:]) for text in TEXTS) / 8


IPO_WITH_REGULARISERS = (
    objectives.get("ipo", tau=0.2) + objectives.chosen_nll(0.5, per_token=True) + objectives.pretraining(0.3)
)


@pytest.mark.parametrize(
    ("objective", "by_hand"),
    [
        (DPO, dpo_loss),
        (MAXPO, maxpo_loss),
        (objectives.get("maxpo", beta=0.1, temperature=2.0, tokens="full"), maxpo_full_loss),
        (IPO_WITH_REGULARISERS, ipo_with_regularisers_loss),
    ],
    ids=["dpo", "maxpo", "maxpo-full", "ipo+chosen_nll+pretraining"],
)
def test_three_steps_end_where_a_loop_by_hand_ends(
    objective: objectives.Objective,
    by_hand: Callable[[PreTrainedModel, PreTrainedModel], Tensor],
    stored: ReferenceLogps,
    tmp_path: Path,
) -> None:
    trained, metrics = run(objective, stored, tmp_path)
    policy, base = llama(), llama()
    decayed = [p for name, p in policy.named_parameters() if "norm" not in name]
    others = [p for name, p in policy.named_parameters() if "norm" in name]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2
    )
    losses, norms = [], []
    for _ in range(3):
        optimiser.zero_grad()
        loss = by_hand(policy, base)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5).item())
        optimiser.step()
    assert_same_weights(trained, policy, atol=1e-6)  # rotations and norms are float32 in a float64 model, too
    logged = metrics.pivot(index="step", columns="name", values="value")
    assert logged["loss"].tolist() == pytest.approx(losses, abs=1e-6)  # the Trainer keeps its sums in float32
    assert logged["grad_norm"].tolist() == pytest.approx(norms, rel=1e-5)
    terms = logged[[name for name in logged if name.startswith("loss/")]].sum(axis=1)
    assert terms.tolist() == pytest.approx(losses, abs=1e-6)


def test_metrics_of_the_first_step_are_the_reference_s(stored: ReferenceLogps, tmp_path: Path) -> None:
    _, metrics = run(DPO, stored, tmp_path)
    first = metrics[metrics["step"] == 1].set_index("name")["value"]
    base = llama()
    with torch.no_grad():
        chosen = torch.stack([plain_logp(base, p.prompt_ids, p.chosen_ids) for p in PAIRS])
        rejected = torch.stack([plain_logp(base, p.prompt_ids, p.rejected_ids) for p in PAIRS])
    assert first["chosen_logps"] == pytest.approx(chosen.mean().item(), rel=1e-6)
    assert first["rejected_logps"] == pytest.approx(rejected.mean().item(), rel=1e-6)
    assert first["plain_margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-5)
    assert first["plain_accuracy"] == pytest.approx((chosen > rejected).double().mean().item())
    assert first["margin"] == pytest.approx(0, abs=1e-9)  # F9
    assert first["chosen_log_ratio"] == pytest.approx(0, abs=1e-9)
    last = metrics[metrics["step"] == metrics["step"].max()].set_index("name")["value"]
    assert last["chosen_log_ratio"] - last["rejected_log_ratio"] == pytest.approx(last["margin"])
    assert abs(last["margin"]) > 1e-6
    assert first["learning_rate"] == pytest.approx(1e-2)
    assert first["step_seconds"] > 0
    assert 5e7 < first["peak_memory_bytes"] < 1e11
    assert metrics["step"].tolist() == sorted(metrics["step"])


def test_saturated_share_counts_pairs_on_the_flat_side(stored: ReferenceLogps, tmp_path: Path) -> None:
    base = llama()
    with torch.no_grad():
        d = torch.stack(
            [
                plain_logp(base, p.prompt_ids, p.chosen_ids) - plain_logp(base, p.prompt_ids, p.rejected_ids)
                for p in PAIRS
            ]
        )
    scale = d.abs().median().item() / 5  # so that about half of the pairs lie beyond 5 temperatures
    objective = objectives.get("maxpo", beta=0.1, temperature=scale)
    _, metrics = run(objective, None, tmp_path)
    share = metrics[(metrics["step"] == 1) & (metrics["name"] == "saturated_share")]["value"].item()
    assert share == pytest.approx((d.abs() / scale > 5).double().mean().item())
    assert 0.2 < share < 0.8


@pytest.mark.parametrize(
    "objective", [DPO, objectives.get("maxpo", temperature=2.0, tokens="full"), IPO_WITH_REGULARISERS], ids=str
)
@pytest.mark.parametrize("change", [{"micro_batch_size": 2}, {"gradient_checkpointing": True}], ids=str)
def test_accumulation_and_recomputation_change_nothing(
    objective: objectives.Objective, change: dict[str, object], stored: ReferenceLogps, tmp_path: Path
) -> None:
    whole, _ = run(objective, stored, tmp_path / "whole")
    parts, _ = run(objective, stored, tmp_path / "parts", config=replace(CONFIG, **change))
    assert_same_weights(whole, parts, atol=1e-7)


SHARING = [
    TokenPair(prompt, tokens(GENERATOR, 1, 6), tokens(GENERATOR, 1, 6))
    for prompt in (tokens(GENERATOR, 3, 5), tokens(GENERATOR, 2, 4))
    for _ in range(4)
]
OWN_SAMPLES = [sample for pair in SHARING for sample in pair.samples]


@pytest.mark.parametrize(
    "objective",
    [DPO, objectives.get("maxpo", temperature=2.0, tokens="full"), IPO_WITH_REGULARISERS, objectives.get("wpo")],
    ids=str,
)
@pytest.mark.parametrize("change", [{"share_prompt": False}, {"logits_memory": 0}, {"micro_batch_size": 2}], ids=str)
def test_sharing_prompts_and_keeping_logits_change_nothing(
    objective: objectives.Objective, change: dict[str, object], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    stored = reference.compute(llama(), tokenizer, SHARING, SAMPLES, ReferenceConfig())
    shared, first = run(
        objective, stored, tmp_path / "shared", pairs=SHARING, config=replace(CONFIG, share_prompt=True)
    )
    other, second = run(objective, stored, tmp_path / "other", pairs=SHARING, config=replace(CONFIG, **change))
    assert_same_weights(shared, other, atol=1e-6)
    losses = [frame[frame["name"] == "loss"]["value"].tolist() for frame in (first, second)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("full", ["sampled", "full"])
def test_the_pairs_themselves_as_reference_samples(
    full: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The same as giving their completions as samples of their own; each is then scored once."""
    objective = objectives.get("maxpo", temperature=2.0, tokens=full)
    stored = reference.compute(llama(), tokenizer, SHARING, OWN_SAMPLES, ReferenceConfig(top_k=5))
    own = replace(CONFIG, reference_samples="pairs", reference_batch_size=1)
    given = replace(CONFIG, reference_batch_size=16)
    one, metrics = run(objective, stored, tmp_path / "one", pairs=SHARING, reference_samples=(), config=own)
    two, _ = run(objective, stored, tmp_path / "two", pairs=SHARING, reference_samples=OWN_SAMPLES, config=given)
    assert_same_weights(one, two, atol=1e-7)
    assert metrics[metrics["name"] == "passes/reference_samples"]["value"].item() == 3.0
    item = Microbatches(objective.needs, SHARING, (), (), stored, own, 0)[0]
    assert len(item["lengths"]) == 16
    assert sorted(item["role/reference_samples"].tolist()) == list(range(16))


# The reference is touched only where the objective needs it.


class Loader:
    """Counts how often the reference is asked for."""

    def __init__(self, stored: ReferenceLogps) -> None:
        self.stored, self.calls = stored, 0

    def __call__(self) -> ReferenceLogps:
        self.calls += 1
        return self.stored


def poisoned(*args: object, **kwargs: object) -> ReferenceLogps:
    raise AssertionError("a reference was loaded")


def test_maxpo_never_loads_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(ReferenceLogps, "load", poisoned)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", poisoned)
    monkeypatch.setattr(PreTrainedModel, "__init__", poisoned)
    monkeypatch.setattr(PreTrainedModel, "__deepcopy__", poisoned, raising=False)
    _, metrics = run(MAXPO, poisoned, tmp_path / "precomputed", model)
    assert not {"margin", "accuracy"} & set(metrics["name"])
    # Neither where a live reference is the setting: there is nothing that would need one.
    live = replace(CONFIG, reference="live")
    run(MAXPO, poisoned, tmp_path / "live", model, live)
    with pytest.raises(AssertionError, match="a reference was loaded"):  # the poison works
        run(DPO, poisoned, tmp_path / "dpo", model, live)


@pytest.mark.parametrize(
    "objective",
    [DPO, objectives.get("maxpo", tokens="full"), objectives.get("maxpo", reference_adjusted=True)],
    ids=str,
)
def test_the_others_do_load_it_once(objective: objectives.Objective, stored: ReferenceLogps, tmp_path: Path) -> None:
    loader = Loader(stored)
    run(objective, loader, tmp_path)
    assert loader.calls == 1
    with pytest.raises(AssertionError, match="a reference was loaded"):
        run(objective, poisoned, tmp_path)
    with pytest.raises(TrainingError, match="needs the reference's"):
        run(objective, None, tmp_path)


def test_a_live_reference_gives_the_same_training(stored: ReferenceLogps, tmp_path: Path) -> None:
    precomputed, _ = run(DPO, stored, tmp_path / "precomputed")
    live, _ = run(DPO, poisoned, tmp_path / "live", config=replace(CONFIG, reference="live"))
    assert_same_weights(precomputed, live)


# Order and freshness of the examples.


def test_every_objective_sees_the_same_pairs_in_the_same_order(stored: ReferenceLogps, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=8, batch_size=2, reference_batch_size=1, learning_rate=1e-12)

    def margins(objective: objectives.Objective, seed: int) -> list[float]:
        _, metrics = run(objective, stored, tmp_path, config=config, seed=seed)
        return metrics[metrics["name"] == "plain_margin"]["value"].tolist()

    dpo = margins(DPO, 0)
    assert dpo == pytest.approx(margins(MAXPO, 0), abs=1e-5)
    assert dpo != pytest.approx(margins(DPO, 1), abs=1e-3)
    # Two passes of eight pairs, each pair once per pass: the means of the two passes agree, their orders do not.
    assert sum(dpo[:4]) == pytest.approx(sum(dpo[4:]), abs=1e-4)
    assert dpo[:4] != pytest.approx(dpo[4:], abs=1e-3)


def test_reused_reference_samples_are_counted_and_warned_about(tmp_path: Path) -> None:
    def passes(config: TrainingConfig) -> float:
        _, metrics = run(MAXPO, None, tmp_path, config=config)
        row = metrics[metrics["name"] == "passes/reference_samples"]
        assert row["step"].item() == config.steps
        return float(row["value"].item())

    with pytest.warns(UserWarning, match="used 3.0 times"):
        assert passes(CONFIG) == 3.0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="each reference sample")
        assert passes(replace(CONFIG, reference_batch_size=2)) == 0.75


# Evaluation between steps.


def test_evaluation_sees_the_model_at_the_asked_steps_and_disturbs_nothing(
    stored: ReferenceLogps, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool]] = []

    def evaluate(model: PreTrainedModel, step: int) -> None:
        seen.append((step, model.training))
        torch.rand(100)

    lora = replace(CONFIG, lora=LoRAConfig(rank=2, dropout=0.5))  # dropout draws random numbers
    plain, _ = run(DPO, stored, tmp_path, config=lora)
    evaluated, _ = run(DPO, stored, tmp_path, config=lora, evaluate=evaluate, evaluate_at=(1, 3))
    assert seen == [(1, False), (3, False)]
    assert_same_weights(plain, evaluated)


# Interruption.


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


def kill(model: PreTrainedModel, step: int) -> None:
    raise Killed


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)], ids=["full", "lora"])
def test_killed_half_way_and_resumed_ends_with_the_same_weights(
    lora: LoRAConfig | None, stored: ReferenceLogps, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=7, batch_size=4, micro_batch_size=2, save_every=2, schedule="linear", lora=lora)
    whole, whole_metrics = run(DPO, stored, tmp_path / "whole", config=config)
    with pytest.raises(Killed):
        run(DPO, stored, tmp_path / "killed", config=config, evaluate=kill, evaluate_at=(5,))
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    seen: list[int] = []
    resumed, metrics = run(
        DPO,
        stored,
        tmp_path / "killed",
        config=config,
        evaluate=lambda model, step: seen.append(step),
        evaluate_at=(2, 5),
    )
    assert seen == [5]  # it did not start again
    assert_same_weights(whole, resumed, atol=0)
    varying = ("step_seconds", "step_cpu_seconds", "peak_memory_bytes")
    pd.testing.assert_frame_equal(
        *(frame[~frame["name"].isin(varying)].reset_index(drop=True) for frame in (whole_metrics, metrics))
    )
    training.clear_checkpoints(tmp_path / "killed")
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_a_torn_checkpoint_is_passed_over(stored: ReferenceLogps, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4, save_every=1)
    whole, _ = run(DPO, stored, tmp_path / "whole", config=config)
    with pytest.raises(Killed):
        run(DPO, stored, tmp_path / "killed", config=config, evaluate=kill, evaluate_at=(3,))
    torn = tmp_path / "killed" / "checkpoints" / "checkpoint-3"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half of it")
    resumed, _ = run(DPO, stored, tmp_path / "killed", config=config)
    assert_same_weights(whole, resumed, atol=0)


def test_checkpoints_of_another_training_are_refused(stored: ReferenceLogps, tmp_path: Path) -> None:
    config = replace(CONFIG, save_every=1)
    run(DPO, stored, tmp_path, config=config)
    for objective, seed, pairs in ((objectives.get("dpo", beta=0.2), 0, PAIRS), (DPO, 1, PAIRS), (DPO, 0, PAIRS[::-1])):
        with pytest.raises(TrainingError, match="checkpoints of another training"):
            run(objective, stored, tmp_path, config=config, seed=seed, pairs=pairs)


# Things that go wrong.


def test_policy_and_reference_that_differ_are_found_at_step_0(stored: ReferenceLogps, tmp_path: Path) -> None:
    full = objectives.get("maxpo", temperature=2.0, tokens="full")
    for objective, factor in ((DPO, 1.01), (full, 1.5)):  # the KL is quadratic in a small difference
        other = llama()
        other.model.layers[1].mlp.down_proj.weight.data *= factor
        with pytest.raises(InputError, match="the reference log-probs are of another model"):
            run(objective, stored, tmp_path, model=other)
        claimed = copy.copy(stored)
        claimed.key = {**stored.key, "model": model_fingerprint(other)}
        with pytest.raises(TrainingError, match=r"policy and reference differ by up to .* before the first step"):
            run(objective, claimed, tmp_path, model=other)


def test_a_model_s_own_dropout_is_off(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    def gpt2(dropout: float) -> PreTrainedModel:
        torch.manual_seed(0)
        rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        return (
            GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, **rates))
            .double()
            .eval()
        )

    stored = reference.compute(gpt2(0.5), tokenizer, PAIRS, [], ReferenceConfig())
    without, _ = run(DPO, stored, tmp_path, model=gpt2(0.0))
    with_dropout, _ = run(DPO, stored, tmp_path, model=gpt2(0.5))
    assert_same_weights(without, with_dropout)


@pytest.mark.parametrize("objective", [DPO, MAXPO], ids=str)
def test_nan_stops_training_and_keeps_batch_and_checkpoint(
    objective: objectives.Objective, stored: ReferenceLogps, tmp_path: Path
) -> None:
    def poison(model: PreTrainedModel, step: int) -> None:
        model.model.norm.weight.data[0] = torch.nan

    config = replace(CONFIG, steps=4, batch_size=4, reference_batch_size=4, save_every=1)
    with pytest.raises(
        TrainingError, match=rf"stopped at step 3 of {objective.name}\(.*checkpoint-1; .*failed_batch.json"
    ):
        # The weights break after the step, before its checkpoint is written: the good one is that of step 1.
        run(objective, stored, tmp_path, config=config, evaluate=poison, evaluate_at=(2,))
    batch = safetensors.torch.load_file(tmp_path / "failed_batch.safetensors")
    assert {name: len(batch[name]) for name in batch if name.startswith("role/")} == {
        "role/chosen": 4,
        "role/rejected": 4,
        **({"role/reference_samples": 4} if objective is MAXPO else {}),
    }
    assert last_checkpoint(tmp_path / "checkpoints") == str(tmp_path / "checkpoints" / "checkpoint-1")
    first = batch["input_ids"][0][(batch["group"][0] == batch["group"][0, 0]) & (batch["branch"][0] == 0)]
    assert tuple(first.tolist()) in {example.prompt_ids for example in [*PAIRS, *SAMPLES]}


def test_an_infinite_gradient_stops_training(stored: ReferenceLogps, tmp_path: Path) -> None:
    model = llama()
    model.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(TrainingError, match=r"stopped at step 1 of dpo.*the gradient's norm is (nan|inf)"):
        run(DPO, stored, tmp_path, model=model)
    assert (tmp_path / "failed_batch.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "needs pairs, but none are given"),
        ({"reference_samples": []}, "needs reference samples, but none are given"),
        ({"pairs": [TokenPair((1, 2), (), (3,))]}, "pair 0 has an empty completion"),
        ({"pairs": [*PAIRS, TokenPair((), (2,), (3,))]}, "pair 8 has an empty prompt"),
        (
            {"pairs": [TokenPair((1,) * 30, (2,), (3, 4, 5))]},
            "pair 0 has 30 prompt and 3 completion tokens, but the model's context is 32",
        ),
        ({"reference_samples": [TokenSample((1,), (VOCABULARY,))]}, "reference sample 0 has a token id beyond"),
        ({"objective": objectives.get("maxpo", temperature="auto")}, "resolve temperature='auto' first"),
        (
            {"objective": objectives.get("dpo") + objectives.pretraining(), "pretraining": [(1,)]},
            "pretraining text 0 has an empty completion",
        ),
        (
            {"config": replace(CONFIG, micro_batch_size=3)},
            r"micro_batch_size \(3\) must divide training.batch_size \(8\)",
        ),
        (
            {"config": replace(CONFIG, micro_batch_size=2, reference_batch_size=6)},
            r"reference_batch_size \(6\) must be a multiple of the forward passes of a step, 4: the nearest is 4 or 8",
        ),
    ],
)
def test_unusable_input_is_refused_before_training(
    arguments: dict[str, object], message: str, stored: ReferenceLogps, tmp_path: Path
) -> None:
    model = llama()
    with pytest.raises(TrainingError, match=message):
        run(arguments.pop("objective", MAXPO), stored, tmp_path, model=model, **arguments)
    assert_same_weights(model, llama(), atol=0)


# LoRA.


def test_lora_changes_only_low_rank_parts_and_leaves_a_plain_model(stored: ReferenceLogps, tmp_path: Path) -> None:
    trained, _ = run(DPO, stored, tmp_path, config=replace(CONFIG, lora=LoRAConfig(rank=2)))
    assert [name for name, _ in trained.named_parameters()] == [name for name, _ in llama().named_parameters()]
    for (name, new), (_, old) in zip(trained.named_parameters(), llama().named_parameters(), strict=True):
        change = (new - old).detach()
        if "proj" in name:
            assert torch.linalg.matrix_rank(change, atol=1e-10) == 2, name
        else:
            assert change.abs().max() == 0, name


def test_with_adapters_off_the_reference_is_the_base_model(stored: ReferenceLogps, tmp_path: Path) -> None:
    """A live reference under LoRA is the policy with its adapters off: training must equal that on the base model's numbers."""
    config = replace(CONFIG, lora=LoRAConfig(rank=2))
    precomputed, metrics = run(DPO, stored, tmp_path / "precomputed", config=config)
    live, live_metrics = run(DPO, poisoned, tmp_path / "live", config=replace(config, reference="live"))
    assert_same_weights(precomputed, live)
    margins = [frame[frame["name"] == "margin"]["value"].tolist() for frame in (metrics, live_metrics)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-6)
    assert abs(margins[0][2]) > 0.01  # the adapters did move the policy

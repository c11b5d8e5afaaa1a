"""Online methods on tiny models: gradients and distributions by enumeration, stopping, resuming, bad input."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import rel_entr
from scipy.stats import chisquare
from sklearn.linear_model import Ridge
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import objectives
from analysis.evidence import Evidence
from analysis.records import read_run
from llm_runs.__main__ import main
from llm_runs.config import ConfigError, RunConfig
from llm_runs.errors import InputError
from llm_runs.experiment import Experiment
from llm_runs.logprobs import collate, completion_logps
from llm_runs.online import runs
from llm_runs.online.baselines import ValueFunction, leave_one_out
from llm_runs.online.iterated import Accelerated, Iterated, extrapolated
from llm_runs.online.policy_gradient import Espo, PolicyGradient, RlhfPpo, Rollouts
from llm_runs.online.rejection import Rso, accept, best_of_kl, expected_best, kl_bound, sizes
from llm_runs.online.rounds import Bench, weights
from llm_runs.rewards import RewardError
from llm_runs.scoring import Scorer

SMALL = [
    "sft.steps=0",
    "data.reward_texts=100",
    "data.prompts=8",
    "data.completion_tokens=6",
    "reference.samples=4",
    "evaluation.prompts=4",
    "evaluation.held_out_samples=4",
    "evaluation.held_out_pairs=4",
    "evaluation.training_pairs=4",
    "evaluation.other_texts=2",
    "training.steps=2",
    "training.batch_size=4",
    "online.rounds=3",
    "online.prompts=4",
    "online.policy_gradient.minibatch=8",
    "online.best_of_n.samples=8",
    "online.rso.candidates=4",
]


class CountE:
    """The share of the letter e: a reward that any policy can learn."""

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
        return np.array([10.0 * text.count("e") / max(1, len(text)) for text in completions])


def bench(folder: Path, *overrides: str) -> Bench:
    experiment = Experiment(RunConfig.load("online_tiny", [*SMALL, *overrides]), folder)
    experiment.__dict__["reward"] = CountE()
    return Bench(experiment)


# -- the policy gradient, by enumeration ---------------------------------------------------------------------------

PROMPT = (1, 2)
COMPLETIONS = [(a, b) for a in range(3) for b in range(3)]  # all there are of two tokens


def three_words(seed: int) -> LlamaForCausalLM:
    """A Llama of three words, in float64."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, bos_token_id=0
    )
    model = LlamaForCausalLM(config).double().eval()
    for parameter in model.parameters():
        parameter.data.mul_(10.0)  # far from uniform
    return model


def all_logps(model: LlamaForCausalLM) -> Tensor:
    """log pi of the nine completions by plain forward passes, (9,)."""
    ids = torch.tensor([PROMPT + completion for completion in COMPLETIONS])
    logps = model(input_ids=ids).logits.log_softmax(-1)
    return sum(logps[:, 1 + t].gather(-1, ids[:, 2 + t, None])[:, 0] for t in range(2))  # type: ignore[return-value]


def gradient(value: Tensor, model: LlamaForCausalLM) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def exact_loop(folder: Path, policy: LlamaForCausalLM, reference: LlamaForCausalLM, *overrides: str) -> PolicyGradient:
    """A loop whose policy and reference are these two."""
    loop = RlhfPpo(bench(folder, "training.max_grad_norm=1e9", *overrides))
    loop.model, loop._reference = policy, reference
    loop.trained = dict(policy.named_parameters())
    loop.optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)  # type: ignore[assignment]
    return loop


@pytest.mark.parametrize("level", ["sequence", "token"])
def test_the_first_step_is_the_exact_policy_gradient(tmp_path: Path, level: str) -> None:
    policy, reference = three_words(0), three_words(1)
    rewards, beta = torch.randn(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 0.3
    logps = all_logps(policy)
    log_ratio = logps - all_logps(reference).detach()
    wanted = gradient(-(logps.exp() * (rewards - beta * log_ratio)).sum(), policy)
    assert logps.exp().sum().item() == pytest.approx(1.0)

    loop = exact_loop(tmp_path, policy, reference, f"online.policy_gradient.level={level}")
    sequences = [(PROMPT, completion) for completion in COMPLETIONS]
    loop.scorer = Scorer(policy, sequences)
    mask = torch.ones(9, 2, dtype=torch.bool)
    old = loop.scorer.score(policy, loop.scorer.pack(sequences)).logps.detach().view(9, 2)  # in float64
    baseline = 5.0  # any constant: it must drop out
    advantages = (rewards - beta * log_ratio - baseline).detach()
    shares = 9 * logps.exp().detach()  # the mean over nine equally likely rollouts becomes the expectation
    loop.update(Rollouts(sequences, old, old, mask, shares * advantages), torch.arange(9))
    found = torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)  # Llama takes its norms in float32


def next_token_kls(p: LlamaForCausalLM, q: LlamaForCausalLM, prefix: tuple[int, ...]) -> Tensor:
    """KL(p(.|prefix) || q(.|prefix)), with its gradients."""
    logps = [m(input_ids=torch.tensor([prefix])).logits[0, -1].log_softmax(-1) for m in (p, q)]
    return (logps[0].exp() * (logps[0] - logps[1])).sum()


def test_the_kl_in_the_loss_is_exact_and_k3_pulls_towards_the_reference(tmp_path: Path) -> None:
    policy, reference = three_words(0), three_words(1)
    loop = exact_loop(tmp_path, policy, reference, "online.policy_gradient.kl=loss")
    sequences = [(PROMPT, completion) for completion in COMPLETIONS]
    loop.scorer = Scorer(policy, sequences)
    zeros, mask = torch.zeros(9, 2, dtype=torch.float64), torch.ones(9, 2, dtype=torch.bool)
    shares = all_logps(policy).exp().detach()

    # Along a completion (a, b): the KL after the prompt and the one after a.
    batch = loop.batch(Rollouts(sequences, zeros, zeros, mask, zeros[:, 0]), torch.arange(9), exact_kl=True)
    assert batch.policy_kl is not None
    by_prefix = {}
    for prefix in [PROMPT, *((*PROMPT, a) for a in range(3))]:
        p, q = (
            m(input_ids=torch.tensor([prefix])).logits[0, -1].softmax(-1).detach().numpy() for m in (policy, reference)
        )
        by_prefix[prefix] = rel_entr(p, q).sum()
    wanted = [by_prefix[PROMPT] + by_prefix[(*PROMPT, a)] for a, _ in COMPLETIONS]
    # Policies in float64 are scored in float64; the KL of whole completions is the mean over what they draw.
    np.testing.assert_allclose(batch.policy_kl.detach(), wanted, rtol=1e-5)
    whole = rel_entr(shares.numpy(), all_logps(reference).exp().detach().numpy()).sum()
    assert (shares * batch.policy_kl).sum().item() == pytest.approx(whole, rel=1e-5)

    # k3: unbiased for KL(pi || pi_ref), but its gradient is that of KL(pi_ref || pi) after each drawn prefix.
    ref_tokens = Scorer(reference, sequences).score(reference, loop.scorer.pack(sequences)).logps.detach().view(9, 2)
    tokens = loop.scorer.score(policy, loop.scorer.pack(sequences)).logps.view(9, 2)
    losses = (
        objectives.penalty(1.0, "k3")
        .terms[0]
        .losses(
            objectives.RolloutBatch(logps=tokens.sum(-1), token_logps=tokens, ref_token_logps=ref_tokens, mask=mask)
        )
    )
    assert (shares * losses).sum().item() == pytest.approx(whole, rel=1e-5)
    first = all_logps(policy).exp().detach().view(3, 3).sum(1)
    forward = next_token_kls(reference, policy, PROMPT) + sum(
        first[a] * next_token_kls(reference, policy, (*PROMPT, a)) for a in range(3)
    )
    torch.testing.assert_close(
        gradient((shares * losses).sum(), policy), gradient(forward, policy), rtol=1e-4, atol=1e-5
    )


# -- loops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RlhfPpo, Espo])
def test_policy_gradients_raise_a_reward_that_can_be_raised(kind: type[PolicyGradient], tmp_path: Path) -> None:
    settings = {"minibatch": 32, "learning_rate": 0.01, "beta": 0.01}
    overrides = [f"online.policy_gradient.{key}={value}" for key, value in settings.items()]
    loop = kind(bench(tmp_path, "online.prompts=8", "online.samples=8", *overrides))
    before = loop.bench.rollouts(loop.model, loop.bench.prompts(1), 32, "judge")
    rounds = [loop.advance(number, tmp_path / "round") for number in range(1, 9)]
    after = loop.bench.rollouts(loop.model, loop.bench.prompts(1), 32, "judge")
    old, new = (np.array([entry.reward for entry in samples]) for samples in (before, after))
    error = np.sqrt(old.var() / len(old) + new.var() / len(new))
    assert new.mean() > old.mean() + 5 * error
    metrics = pd.concat(rounds)
    first = metrics[metrics["step"] == 1].set_index("name")["value"]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["ratio_deviation"] < 1e-4
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics.loc[metrics["name"] == "kl", "value"].iloc[-1] > 0.01
    assert {"reward", "entropy", "clip_share", "loss", "loss/surrogate", "grad_norm"} <= set(metrics["name"])


def test_espo_stops_where_its_statistic_says(tmp_path: Path) -> None:
    delta = 0.05
    loop = Espo(bench(tmp_path, f"online.policy_gradient.delta={delta}", "online.policy_gradient.epochs=20"))
    metrics = loop.advance(1, tmp_path / "round")
    values = metrics.groupby("name")["value"].apply(list)
    assert all(value <= delta for value in values["ratio_deviation"])
    assert values["stopped"] == [1.0]
    assert values["stopped/ratio_deviation"][0] > delta
    assert values["round_updates"] == [len(values["ratio_deviation"])] < [40]

    patient = Espo(bench(tmp_path / "patient", "online.policy_gradient.delta=1e9", "online.policy_gradient.epochs=3"))
    end = patient.advance(1, tmp_path / "round").set_index("name")["value"]
    assert (end["round_updates"], end["stopped"]) == (6, 0)  # 16 rollouts, 8 in a minibatch, three times


def test_the_logged_statistic_is_the_mean_change_of_the_ratio(tmp_path: Path) -> None:
    loop = Espo(bench(tmp_path, "online.policy_gradient.delta=1e9"))
    samples = loop.bench.rollouts(loop.model, loop.bench.prompts(1), 4, 1)
    rollouts, _ = loop.prepare(samples, 1)
    inputs = collate([s.prompt_ids for s in samples], [s.completion_ids for s in samples])
    chosen = torch.arange(len(samples))
    before = completion_logps(loop.model, inputs).detach()
    loop.update(rollouts, chosen)
    change = (completion_logps(loop.model, inputs).detach() - before).exp() - 1
    _, values = loop.update(rollouts, chosen)
    assert values["ratio_deviation"] == pytest.approx(change.abs().mean().item(), rel=1e-3)


def test_the_group_baseline_leaves_each_rollout_out() -> None:
    found = leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]))
    torch.testing.assert_close(found, torch.tensor([[4.0, 3.5, 1.5]]))


def test_the_learned_baseline_is_ridge_regression() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 5)), draw.normal(size=40)
    value = ValueFunction(5)
    assert not value.known
    for part in np.split(np.arange(40), 4):
        value.learn(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    np.testing.assert_allclose(value.predict(torch.from_numpy(x)), Ridge(alpha=1.0).fit(x, y).predict(x), rtol=1e-8)


def test_adapters_switched_off_are_the_reference(tmp_path: Path) -> None:
    loop = RlhfPpo(
        bench(tmp_path, "training.lora={rank: 2}", "online.policy_gradient.baseline=learned", "online.rounds=2")
    )
    for number in (1, 2):
        metrics = loop.advance(number, tmp_path / "round")
    assert loop._reference is None  # no second model
    assert all("lora" in name for name in loop.trained)
    samples = loop.bench.rollouts(loop.model, loop.bench.prompts(1), 2, "check")
    sequences = [(entry.prompt_ids, entry.completion_ids) for entry in samples]
    with loop.reference() as reference:
        found, _ = loop.token_logps(reference, sequences)
    policy, _ = loop.token_logps(loop.model, sequences)
    inputs = collate([prompt for prompt, _ in sequences], [completion for _, completion in sequences])
    wanted = completion_logps(loop.bench.experiment.load_reference(), inputs)
    torch.testing.assert_close(found.sum(-1), wanted.detach(), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(policy.sum(-1), wanted, atol=1e-3)
    assert np.isfinite(metrics["value"]).all()


def test_weights_are_extrapolated() -> None:
    own, before = {"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([0.5, 4.0])}
    torch.testing.assert_close(extrapolated(own, before, 0.4)["w"], torch.tensor([1.2, 2.6]))


def test_accelerated_without_extrapolation_is_the_plain_iteration(tmp_path: Path) -> None:
    ends = {}
    for kind, alpha in ((Iterated, 0.3), (Accelerated, 0.0), (Accelerated, 0.9)):
        loop = kind(bench(tmp_path / f"{kind.name}{alpha}", f"online.iterated.extrapolation={alpha}"))
        start = weights(loop.model)
        trained = []
        for number in (1, 2):
            loop.advance(number, tmp_path / "round")
            trained.append(weights(loop.model))
        ends[kind.name, alpha] = trained
        name = "model.norm.weight"
        assert not torch.equal(trained[0][name], start[name])
    plain, zero, fast = ends.values()
    for first, second in zip(plain, zero, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(plain[0], fast[0], rtol=0, atol=0)  # the first round has nothing to extrapolate
    assert any(not torch.equal(plain[1][name], fast[1][name]) for name in plain[1])


def test_a_fixed_reference_stays_the_first_policy(tmp_path: Path) -> None:
    loop = Iterated(bench(tmp_path, "online.iterated.reference=fixed"))
    first = loop.advance(1, tmp_path / "round")
    second = loop.advance(2, tmp_path / "round")
    assert first.loc[first["name"] == "loss", "value"].iloc[0] == pytest.approx(np.log(2), abs=1e-4)
    # In the second round the policy has left its reference, so the first loss is no longer log 2.
    assert abs(second.loc[second["name"] == "loss", "value"].iloc[0] - np.log(2)) > 1e-3
    assert second["step"].max() == 2 * loop.bench.online.iterated.steps


# -- rejection sampling and best of n -------------------------------------------------------------------------------

REFERENCE = np.array([0.4, 0.3, 0.2, 0.1])
REWARDS = np.array([0.0, 1.0, 0.5, 1.5])


def test_with_the_true_maximum_accepted_completions_follow_the_rlhf_optimum() -> None:
    draw, beta = np.random.default_rng(0), 0.7
    counts = np.zeros(4)
    for _ in range(2000):
        candidates = draw.choice(4, size=10, p=REFERENCE)
        for i in accept(REWARDS[candidates].tolist(), beta, 10, draw, maximum=1.5):
            counts[candidates[i]] += 1
    optimum = REFERENCE * np.exp(REWARDS / beta)
    assert chisquare(counts, counts.sum() * optimum / optimum.sum()).pvalue > 0.01
    assert chisquare(counts, counts.sum() * REFERENCE).pvalue < 1e-10


def test_with_an_estimated_maximum_the_first_accepted_has_the_enumerated_distribution() -> None:
    draw, beta, size = np.random.default_rng(1), 0.7, 3
    wanted = np.zeros(4)
    for candidates in itertools.product(range(4), repeat=size):
        chance, nothing_yet = np.prod(REFERENCE[list(candidates)]), 1.0
        for y in candidates:
            taken = np.exp((REWARDS[y] - max(REWARDS[list(candidates)])) / beta)
            wanted[y] += chance * nothing_yet * taken
            nothing_yet *= 1.0 - taken
    # What a whole pass leaves out is none: the best candidate is always accepted.
    assert wanted.sum() == pytest.approx(1.0)
    counts = np.zeros(4)
    for _ in range(8000):
        candidates = draw.choice(4, size=size, p=REFERENCE)
        (first,) = accept(REWARDS[candidates].tolist(), beta, 1, draw)
        counts[candidates[first]] += 1
    assert chisquare(counts, 8000 * wanted).pvalue > 0.01


def test_missing_ones_are_made_up_for_from_the_rest() -> None:
    taken = accept([0.0, 5.0, -50.0, 4.0], 0.01, 3, np.random.default_rng(0))
    assert taken == [1, 3, 0]  # at a low temperature simply the best, one pass after the other
    assert accept([0.0, 5.0], 0.01, 3, np.random.default_rng(0)) == [1, 0]
    with pytest.raises(InputError, match=r"online\.rso\.maximum is 1, but a completion has reward 5"):
        accept([0.0, 5.0], 1.0, 1, np.random.default_rng(0), maximum=1.0)


def test_rso_trains_on_accepted_completions_alone(tmp_path: Path) -> None:
    loop = Rso(bench(tmp_path, "online.rso.beta=0.2", "online.rso.candidates=8", "online.rso.accepted=2"))
    metrics = loop.advance(1, tmp_path / "round").set_index("name")["value"]
    assert metrics["accepted_reward"] > metrics["reward"]
    assert metrics["accepted"] == 16  # two of each of eight prompts: 3 rounds of 4 prompts go around them
    assert metrics["pairs"] <= 8


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_best_of_n_is_that_of_all_subsets_and_draws(n: int) -> None:
    rewards = np.array([0.3, -1.0, 0.3, 2.0, 0.7])
    subsets = [max(subset) for subset in itertools.combinations(rewards, n)]
    assert expected_best(rewards, n) == pytest.approx(np.mean(subsets))
    # KL of the best of n independent draws from the five, ties broken by chance, by counting all draws.
    best = np.zeros(5)
    for draws in itertools.product(range(5), repeat=n):
        top = [i for i in draws if rewards[i] == max(rewards[list(draws)])]
        for i in top:
            best[i] += 1 / len(top) / 5**n
    assert best_of_kl(rewards, n) == pytest.approx(rel_entr(best, np.full(5, 0.2)).sum())
    assert best_of_kl(rewards, n) <= kl_bound(n) + 1e-12


def test_without_ties_the_bound_is_reached_where_samples_abound() -> None:
    rewards = np.random.default_rng(0).normal(size=20_000)
    assert best_of_kl(rewards, 8) == pytest.approx(kl_bound(8), abs=1e-3)
    assert sizes(16) == [1, 2, 4, 8]
    assert sizes(3) == [1]


# -- the command ---------------------------------------------------------------------------------------------------


def online(out: Path, *methods: str, more: Sequence[str] = (), options: Sequence[str] = ()) -> int:
    return main(["online", "online_tiny", "--out", str(out), "--method", *methods, *options, "--set", *SMALL, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("online") / "tiny"
    assert online(out, "espo", "accelerated", "best_of_n", more=["online.policy_gradient.baseline=learned"]) == 0
    return out


def test_records_have_the_form_of_an_offline_training(finished: Path) -> None:
    evidence = Evidence.load(finished)
    assert evidence.skipped == ()
    assert evidence.left_out == []
    settings = {setting.objective: setting for setting in evidence.language_model()}
    assert set(settings) == {"espo", "accelerated", "best_of_n"}
    for setting in settings.values():
        assert setting.labels == "near_deterministic"
        assert setting.steps[0] == 0
        for step in setting.steps:
            assert len(setting.items("held_out_prompts", "reward", step)) == 4
            assert len(setting.items("held_out_prompts", "kl_policy_reference", step)) == 4
    assert settings["espo"].strength == 0.1
    assert settings["accelerated"].steps == [0, 2, 4, 6]
    assert settings["best_of_n"].steps == [0, 1, 2, 4]
    (best,) = settings["best_of_n"].runs
    scored = best.table("reference_rewards")
    assert scored.groupby("item").size().tolist() == [8] * 4
    once = settings["best_of_n"].items("held_out_prompts", "reward", 1)
    np.testing.assert_allclose(scored.groupby("item")["reward"].mean(), once)
    assert best.manifest["extra"]["rollouts"]["engine"] == "transformers"
    assert not list(finished.rglob("unfinished"))


def test_rollouts_by_continuous_batching(finished: Path, tmp_path: Path) -> None:
    out, engine = tmp_path / "continuous", "sampling.engine=continuous"
    assert online(out, "rlhf_ppo", more=[engine, "online.rounds=1"]) == 0
    (folder,) = (out / "runs").iterdir()
    extra = read_run(folder).manifest["extra"]
    assert extra["rollouts"]["engine"] == "continuous"
    assert extra["rollouts"]["version"].startswith("transformers ")
    assert {about["engine"] for about in extra["samples"].values()} == {"continuous"}
    assert len({about["seed"] for about in extra["samples"].values()}) == 4


@pytest.mark.parametrize("method", ["espo", "accelerated"])
def test_an_interrupted_run_continues_as_if_nothing_had_happened(
    method: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "copy"))
    (folder,) = (out / "runs").glob(f"{method}*")
    shutil.rmtree(folder)
    calls = []
    original = Bench.evaluate

    def interrupted(self: Bench, model: object, number: int) -> object:
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt  # the second round is trained, but nothing of it is kept
        return original(self, model, number)  # type: ignore[arg-type]

    monkeypatch.setattr(Bench, "evaluate", interrupted)
    learned = ["online.policy_gradient.baseline=learned"]
    assert online(out, method, more=learned) == 130
    assert [path.name for path in folder.rglob("state-*.safetensors")] == ["state-1.safetensors"]
    assert online(out, method, more=learned) == 0
    assert len(calls) == 4
    again, undisturbed = read_run(folder), read_run(finished / "runs" / folder.name)
    for name in ("evaluations", "samples"):
        pd.testing.assert_frame_equal(again.table(name), undisturbed.table(name))
    times = "seconds|memory"
    first, second = (r.table("metrics").loc[lambda f: ~f["name"].str.contains(times)] for r in (again, undisturbed))
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))
    before = (folder / "run.json").stat().st_mtime_ns
    assert online(out, method, more=learned) == 0  # complete: nothing is done
    assert (folder / "run.json").stat().st_mtime_ns == before


def test_a_dry_run_plans_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert online(tmp_path / "out", "rso", "rlhf_ppo", options=["--dry-run"]) == 0
    text = capsys.readouterr().out
    # 3 rounds x 4 prompts x 4 candidates; 3 x 4 x 4 rollouts, each twice
    assert "rso, 1 round: 48 completions sampled, 16 trained on, 1 evaluations" in text
    assert "rlhf_ppo, 3 rounds: 48 completions sampled, 96 trained on, 3 evaluations" in text
    assert not (tmp_path / "out").exists()
    assert main(["online", "online_quick", "--out", str(tmp_path / "out"), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("online.rouds=3", "unknown key 'rouds' in section 'online'; nearest valid names: rounds"),
        ("online.methods=[ppo]", "must be one of rlhf_ppo"),
        ("online.samples=3", "must be even, because neighbours make a pair; it is 3"),
        ("online.rso.accepted=40", "exceeds rso.candidates"),
        ("online.policy_gradient.clip=1.5", "must be less than 1"),
        ("online.iterated.objective=dpoo", "did you mean 'dpo'"),
        ("online.iterated.objective=dpo+forward_kl", "needs reference_samples; a round has labelled pairs only"),
        ("online.rso.objective=maxpo(temperature='auto',reference='none')", "rso.objective"),
    ],
)
def test_a_wrong_configuration_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        RunConfig.load("online_tiny", [override])


def test_wrong_calls_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert online(tmp_path, "rlhf_pop") == 2
    assert "unknown method 'rlhf_pop'; did you mean 'rlhf_ppo'" in capsys.readouterr().err
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    arguments = ["online", "online_tiny", "--out", str(tmp_path / "own"), "--dry-run", "--set"]
    assert main([*arguments, f"data.preferences={pairs}"]) == 2
    assert "data.preferences has no reward for these" in capsys.readouterr().err


def test_what_goes_wrong_in_a_round_is_explained(tmp_path: Path) -> None:
    class Broken:
        def score(self, prompts: Sequence[str], completions: Sequence[str]) -> NDArray[np.float64]:
            return np.array([np.nan] * len(completions))

    broken = bench(tmp_path)
    broken.experiment.__dict__["reward"] = Broken()
    with pytest.raises(RewardError, match="returned nan for 16 of 16 completions"):
        RlhfPpo(broken).advance(1, tmp_path / "round")

    loop = RlhfPpo(bench(tmp_path))
    rollouts, _ = loop.prepare(loop.bench.rollouts(loop.model, loop.bench.prompts(1), 4, 1), 1)
    infinite = torch.full_like(rollouts.advantages, torch.inf)
    wrong = Rollouts(rollouts.sequences, rollouts.old_token_logps, rollouts.ref_token_logps, rollouts.mask, infinite)
    with pytest.raises(InputError, match=r"rlhf_ppo at update 1: .*NaN or infinity.*learning_rate"):
        loop.update(wrong, torch.arange(4))


def test_too_little_memory_says_which_setting_to_lower(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    loop = RlhfPpo(bench(tmp_path))
    handle = loop.model.register_forward_hook(fail)
    with pytest.raises(InputError, match=r"^out of memory: set sampling.batch_size=32 \(now 64\); a folder keeps"):
        loop.advance(1, tmp_path / "round")
    handle.remove()
    loop.prepare = fail  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"^out of memory: set online.policy_gradient.minibatch=4 \(now 8\)$"):
        loop.advance(1, tmp_path / "round")


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    runs._write_state(tmp_path, 1, {"a": torch.ones(3)})
    torch.testing.assert_close(runs._read_state(tmp_path, 1), {"a": torch.ones(3)})
    path = tmp_path / "state-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="damaged"):
        runs._read_state(tmp_path, 1)
    runs._claim(tmp_path, "one")
    with pytest.raises(InputError, match="another configuration"):
        runs._claim(tmp_path, "two")

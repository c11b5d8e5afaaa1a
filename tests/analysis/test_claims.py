"""Claims on records whose truth is known: they must hold, fail, stay open, and say what is missing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic_records as synthetic

import objectives
from analysis.__main__ import main
from analysis.claims import CLAIMS, Domain, Finding, Verdict, adjusted_findings
from analysis.claims.model import Judgement, Part, above, combine, exact
from analysis.evidence import Evidence, comparable, held_out_of, strength_of
from analysis.matching import difference_at_equal_reward
from analysis.records import write_run
from analysis.statistics import Interval

BY_ID = {claim.id: claim for claim in CLAIMS}
SWAP = {"dpo": "maxpo", "maxpo": "dpo"}
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Language-model records made to the prediction, with methods in other roles, and under three seeds with training noise of 1 %."""
    truths = {
        "predicted": synthetic.Truth(prompts=256),
        "swapped": synthetic.Truth(
            {SWAP.get(method, method): one for method, one in synthetic.PREDICTED.items()}, prompts=256
        ),
        "seeds": synthetic.Truth(prompts=128, seeds=SEEDS, seed_noise=0.01),
    }
    folder = tmp_path_factory.mktemp("records")
    return {name: synthetic.write_language_model(folder / name, truth) for name, truth in truths.items()}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard errors over training seeds good to 4 %."""
    monkeypatch.setattr("analysis.seeds.DRAWS", 300)


def judged(folder: Path, claim: str, domain: Domain) -> Finding:
    return next(found for found in BY_ID[claim].findings(Evidence.load(folder)) if found.domain is domain)


def test_the_whole_follows_from_its_parts() -> None:
    holds, fails = exact("a", True, 1.0), exact("b", False, 0.0)
    unclear = above("c", Interval(0.1, -1.0, 1.0, 10))
    assert combine([holds, holds]) is Verdict.HOLDS
    assert combine([fails, unclear]) is Verdict.FAILS
    assert combine([holds, fails]) is Verdict.MIXED
    assert combine([holds, unclear]) is Verdict.OPEN
    assert combine([]) is Verdict.OPEN
    assert above("d", Interval(2.0, n=1)).verdict is Verdict.OPEN  # no interval, no verdict
    assert above("e", Interval(-2.0, -3.0, -1.0, 9)).verdict is Verdict.FAILS
    assert above("e", Interval(-2.0, -3.0, -1.0, 9), bound=-5.0).verdict is Verdict.HOLDS


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C4", "C8", "C9"])
def test_bandit_claims_hold_where_the_closed_forms_say_so(tmp_path: Path, claim: str) -> None:
    found = judged(synthetic.write_bandits(tmp_path), claim, Domain.BANDIT)
    assert found.verdict is Verdict.HOLDS, [(part.statement, part.effect, part.verdict) for part in found.parts]


@pytest.mark.parametrize(
    ("claim", "experiment"),
    [("C1", "determinism"), ("C2", "strength"), ("C3", "partial_support"), ("C4", "finite_data")],
)
def test_bandit_claims_fail_when_dpo_and_maxpo_change_roles(tmp_path: Path, claim: str, experiment: str) -> None:
    frame = synthetic.EXPERIMENTS[experiment]()
    synthetic.write_bandit(tmp_path, experiment, frame.assign(objective=frame["objective"].replace(SWAP)))
    found = judged(tmp_path, claim, Domain.BANDIT)
    assert found.verdict in (Verdict.FAILS, Verdict.MIXED)
    against = [part.statement for part in found.parts if part.verdict is Verdict.FAILS]
    assert any(statement.startswith("dpo") for statement in against)
    assert any(statement.startswith("maxpo") or "maxpo's" in statement for statement in against)


def test_c1_reads_dpos_slope_off_the_closed_form(tmp_path: Path) -> None:
    """D = logit p / beta, so near p = 1 KL(ref||policy) rises by pi_ref(loser) / beta = .6 per unit of log-odds at beta = 1."""
    synthetic.write_bandit(tmp_path, "determinism")
    found = judged(tmp_path, "C1", Domain.BANDIT)
    assert found.parts[0].value.estimate == pytest.approx(0.6, rel=1e-3)


def test_c7_finds_dpo_optimal_in_a_bradley_terry_world(tmp_path: Path) -> None:
    """There DPO's optimum is the RLHF optimum (F2), so whoever leaves its frontier is dominated: the claim must fail against it."""
    synthetic.write_bandit(tmp_path, "frontier")
    found = judged(tmp_path, "C7", Domain.BANDIT)
    against_dpo = next(part for part in found.parts if "dpo's" in part.statement)
    assert against_dpo.verdict is Verdict.FAILS
    assert against_dpo.value.estimate < -0.01
    note = next(note for note in found.notes if "dpo lies" in note)
    assert float(note.split("lies ")[1].split()[0]) == pytest.approx(0.0, abs=1e-9)


def test_c8_fails_when_something_else_regularises_too(tmp_path: Path) -> None:
    frame = synthetic.ablation()
    good = frame["regulariser"].isin(["forward_kl", "chosen_nll"])
    frame.loc[good, "status"] = "converged"
    frame.loc[good, "off_support_drift"] = 0.0
    synthetic.write_bandit(tmp_path, "ablation", frame)
    assert judged(tmp_path, "C8", Domain.BANDIT).verdict is Verdict.MIXED
    frame.loc[frame["regulariser"] == "forward_kl", "off_support_drift"] = 0.2
    frame.loc[frame["regulariser"] == "none", ["status", "off_support_drift"]] = ["converged", 0.0]
    synthetic.write_bandit(tmp_path, "ablation", frame)
    assert judged(tmp_path, "C8", Domain.BANDIT).verdict is Verdict.FAILS


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C4", "C6", "C7"])
def test_language_model_claims_hold_on_records_made_to_the_prediction(records: dict[str, Path], claim: str) -> None:
    found = judged(records["predicted"], claim, Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.HOLDS, [(part.statement, part.effect, part.verdict) for part in found.parts]
    assert any("one training seed" in note for note in found.notes)


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C4", "C6", "C7"])
def test_language_model_claims_fail_when_dpo_and_maxpo_change_roles(records: dict[str, Path], claim: str) -> None:
    found = judged(records["swapped"], claim, Domain.LANGUAGE_MODEL)
    assert found.verdict in (Verdict.FAILS, Verdict.MIXED), [(part.statement, part.effect) for part in found.parts]


@pytest.mark.parametrize("claim", ["C1", "C3", "C6", "C7"])
def test_few_noisy_prompts_and_no_difference_are_not_enough_evidence(tmp_path: Path, claim: str) -> None:
    same = dataclasses.replace(synthetic.PREDICTED["ipo"], noisy=1.0, log_ratio=0.0, benchmark=0.5)
    truth = synthetic.Truth(dict.fromkeys(("dpo", "ipo", "maxpo"), same), prompts=6, noise=1.0)
    found = judged(synthetic.write_language_model(tmp_path, truth), claim, Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.OPEN, [(part.statement, part.effect) for part in found.parts]


def test_c1_effect_is_the_difference_that_was_put_in(records: dict[str, Path]) -> None:
    found = judged(records["predicted"], "C1", Domain.LANGUAGE_MODEL)
    growth = found.parts[0].value  # dpo: KL 10 on near-deterministic labels, 5 on noisy ones, at every strength
    assert growth.low < 5.0 < growth.high
    assert growth.high - growth.low < 0.6


def test_c5_compares_memory_and_time_against_a_live_reference(tmp_path: Path) -> None:
    keys = [("dpo", "live"), ("dpo", "precomputed"), ("maxpo", "none")]
    synthetic.write_costs(
        tmp_path, dict(zip(keys, (3e9, 2e9, 2e9), strict=True)), dict(zip(keys, (2.0, 1.5, 1.5), strict=True))
    )
    found = judged(tmp_path, "C5", Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.HOLDS
    assert found.parts[0].value.estimate == pytest.approx(1.5)
    assert found.parts[1].value.low < 2.0 / 1.5 < found.parts[1].value.high
    assert "precomputed" in found.notes[-1]
    synthetic.write_costs(
        tmp_path, dict(zip(keys, (2e9, 2e9, 3e9), strict=True)), dict(zip(keys, (1.0, 1.5, 1.5), strict=True))
    )
    assert judged(tmp_path, "C5", Domain.LANGUAGE_MODEL).verdict is Verdict.FAILS


def test_c8_on_a_language_model_compares_with_and_without_the_term(tmp_path: Path) -> None:
    levels = {
        "dpo": synthetic.PREDICTED["dpo"],
        "dpo+forward_kl": dataclasses.replace(synthetic.PREDICTED["dpo"], log_ratio=-0.5),
    }
    synthetic.write_language_model(tmp_path, synthetic.Truth(levels, prompts=200))
    found = judged(tmp_path, "C8", Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.HOLDS
    assert found.parts[0].value.low < 11.5 < found.parts[0].value.high


def test_the_term_is_compared_with_the_same_pair_loss_and_with_the_weight_nearest_to_its_strength(
    tmp_path: Path,
) -> None:
    levels = synthetic.PREDICTED["ipo"]

    def write(name: str, method: str, log_ratio: float, **hyperparameters: object) -> None:
        truth = synthetic.Truth(
            {method: dataclasses.replace(levels, log_ratio=log_ratio)},
            prompts=64,
            labels=("near_deterministic",),
            strengths=(0.1,),
            hyperparameters=hyperparameters,
        )
        synthetic.write_language_model(tmp_path / name, truth)

    write("sum", "ipo", -4.0, aggregation="sum")
    write("mean", "ipo", -30.0, aggregation="mean")  # another loss: nothing of the term
    for weight, log_ratio in ((0.01, -3.5), (0.1, -3.0), (0.3, -1.0)):
        term = {"aggregation": "sum", "forward_kl.weight": weight, "forward_kl.tokens": "full"}
        write(f"full-{weight}", "ipo+forward_kl", log_ratio, **term)
    sampled = {"aggregation": "sum", "forward_kl.weight": 0.1, "forward_kl.tokens": "sampled"}
    write("sampled", "ipo+forward_kl", -20.0, **sampled)
    found = judged(tmp_path, "C8", Domain.LANGUAGE_MODEL)
    assert [part.value.estimate for part in found.parts] == [pytest.approx(1.0, abs=0.3)]
    by_weight = [note for note in found.notes if ", weight " in note]
    assert [note.split("weight ")[1].split(":")[0] for note in by_weight] == ["0.01", "0.1", "0.3"]


@pytest.mark.parametrize(
    "label",
    [
        "dpo(beta=0.1)",
        "ipo(tau=0.3, aggregation='mean')",
        "dpo(beta=0.1) + forward_kl(weight=0.03, tokens='full')",
        "maxpo(beta=0.1) + chosen_nll(weight=2)",
    ],
)
def test_the_strength_read_off_a_record_is_the_one_that_objectives_vary(label: str) -> None:
    varied = objectives.parse(label).with_strength(0.77)
    assert strength_of(dict(varied.hyperparameters)) == 0.77
    assert dict(varied.hyperparameters) != dict(objectives.parse(label).hyperparameters)


def test_nothing_recorded_is_not_enough_evidence_with_the_command(tmp_path: Path) -> None:
    for claim in CLAIMS:
        for found in claim.findings(Evidence.load(tmp_path)):
            assert found.verdict is Verdict.OPEN
            command = "python -m toy_bandits run" if found.domain is Domain.BANDIT else "python -m llm_runs"
            assert "no records of" in found.notes[0]
            assert found.command is not None
            assert found.command.startswith(command)


def test_a_missing_column_or_nan_is_named_and_never_a_verdict(tmp_path: Path) -> None:
    synthetic.write_bandit(tmp_path, "determinism", synthetic.determinism().drop(columns="status"))
    found = judged(tmp_path, "C1", Domain.BANDIT)
    assert found.verdict is Verdict.OPEN
    assert "status" in found.notes[0]
    run = next(iter(Evidence.load(synthetic.write_language_model(tmp_path)).settings)).runs[0]
    evaluations = run.table("evaluations")
    evaluations.loc[evaluations["metric"] == "kl_policy_reference", "value"] = math.nan
    write_run(
        run.folder,
        kind="llm",
        id=run.id,
        config=run.config,
        seeds={},
        tables={"metrics": run.table("metrics"), "evaluations": evaluations},
    )
    found = judged(tmp_path, "C1", Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.OPEN
    assert "not finite" in found.notes[0]


def test_runs_that_differ_in_model_are_not_mixed(tmp_path: Path) -> None:
    synthetic.write_language_model(tmp_path / "a")
    synthetic.write_language_model(tmp_path / "b", synthetic.Truth(strengths=(0.1,), model="another"))
    evidence = Evidence.load(tmp_path)
    assert {run.config["model"]["name"] for setting in evidence.settings for run in setting.runs} == {"tiny-random"}
    assert len(evidence.left_out) == 1
    assert "6 language-model run(s)" in evidence.left_out[0]


def test_training_seeds_are_averaged_item_by_item(tmp_path: Path) -> None:
    synthetic.write_language_model(tmp_path, synthetic.Truth(seeds=(0, 1), strengths=(0.1,)))
    (setting,) = Evidence.load(tmp_path).language_model("dpo", "noisy")
    assert len(setting.runs) == 2
    both = [
        frame[(frame["metric"] == "reward") & (frame["step"] == 20) & (frame["item"] == 5)]["value"].item()
        for frame in (run.table("evaluations") for run in setting.runs)
    ]
    assert setting.items("held_out_prompts", "reward").loc[5] == pytest.approx(np.mean(both))


def test_matched_reward_picks_the_strength_nearest_to_what_all_reach(tmp_path: Path) -> None:
    base = synthetic.PREDICTED["dpo"]
    for strength, rewards in ((0.02, (3.0, 1.0, 1.5)), (0.1, (1.4, 1.5, 0.5))):
        levels = {
            method: dataclasses.replace(base, reward=reward)
            for method, reward in zip(("dpo", "ipo", "maxpo"), rewards, strict=True)
        }
        synthetic.write_language_model(tmp_path, synthetic.Truth(levels, strengths=(strength,), noise=0.0))
    chosen = comparable(Evidence.load(tmp_path), "near_deterministic")
    # best rewards 3, 1.5, 1.5: the target is 1.5
    assert {method: setting.strength for method, setting in chosen.items()} == {"dpo": 0.1, "ipo": 0.1, "maxpo": 0.02}


def test_the_command_prints_a_table_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_bandits(tmp_path / "bandits")
    synthetic.write_language_model(tmp_path / "llm", synthetic.Truth(prompts=16))
    (tmp_path / "llm" / "broken").mkdir()
    (tmp_path / "llm" / "broken" / "run.json").write_text("{")
    assert main(["claims", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    commands = [line for line in shown.out.splitlines() if line.startswith("python -m")]  # whole, to be copied
    assert any("forward_kl" in command for command in commands)
    assert max(len(line) for line in shown.out.splitlines() if line not in commands) <= 120
    assert all(claim.id in shown.out for claim in CLAIMS)
    assert "broken" in shown.err
    assert main(["claims", str(tmp_path), "--format", "markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| C")]
    assert len(rows) == sum(claim.bandit is not None for claim in CLAIMS) + len(CLAIMS)
    assert main(["claims", str(tmp_path), "--explain", "c3"]) == 0
    explained = capsys.readouterr().out
    assert "Prediction:" in explained
    assert "Rule:" in explained
    assert max(len(line) for line in explained.splitlines() if str(tmp_path) not in line) <= 120
    assert main(["claims", str(tmp_path), "--format", "csv"]) == 0
    (tmp_path / "claims.csv").write_text(capsys.readouterr().out)
    table = pd.read_csv(tmp_path / "claims.csv")
    row = table[(table["claim"] == "C3") & (table["where"] == "language model")].iloc[0]
    assert row["low"] < row["effect"] < row["high"]


def test_the_command_refuses_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: there is no such folder\n"
    assert main(["claims", str(tmp_path), "--explain", "C77"]) == 2
    assert "the claims are C1, C2" in capsys.readouterr().err


def test_methods_are_compared_by_one_variant_with_equal_tries(tmp_path: Path) -> None:
    """A second form of maxpo at one strength gives it no extra try; the variant with both strengths is the method."""
    synthetic.write_language_model(tmp_path / "a", synthetic.Truth(hyperparameters={"tokens": "full"}))
    lucky = {"maxpo": dataclasses.replace(synthetic.PREDICTED["maxpo"], reward=9.0)}
    truth = synthetic.Truth(lucky, strengths=(0.5,), hyperparameters={"tokens": "sampled"})
    synthetic.write_language_model(tmp_path / "b", truth)
    evidence = Evidence.load(tmp_path)
    assert [setting.strength for setting in evidence.language_model("maxpo", "noisy")] == [0.02, 0.1, 0.5]
    assert [setting.strength for setting in evidence.method("maxpo", "noisy")] == [0.02, 0.1]


def test_c9_on_a_language_model_compares_the_two_forms(tmp_path: Path) -> None:
    base = synthetic.PREDICTED["maxpo"]
    for tokens, log_ratio in (("full", -0.5), ("sampled", -4.0)):
        levels = {"maxpo": dataclasses.replace(base, log_ratio=log_ratio)}
        truth = synthetic.Truth(levels, strengths=(0.1,), hyperparameters={"tokens": tokens})
        synthetic.write_language_model(tmp_path / tokens, truth)
    found = judged(tmp_path, "C9", Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.HOLDS
    assert found.parts[0].value.low < 3.5 < found.parts[0].value.high


def test_an_unsolved_problem_is_no_evidence(tmp_path: Path) -> None:
    frame = synthetic.determinism()
    frame.loc[3, "status"] = "unsolved"
    synthetic.write_bandit(tmp_path, "determinism", frame)
    found = judged(tmp_path, "C1", Domain.BANDIT)
    assert found.verdict is Verdict.OPEN
    assert "1 of 90 problems of determinism have status unsolved" in found.notes[0]


def test_a_run_that_does_not_say_what_was_trained_is_left_out_aloud(tmp_path: Path) -> None:
    synthetic.write_language_model(tmp_path)
    write_run(tmp_path / "odd", kind="llm", id="odd", config={"objective": "dpo"}, seeds={}, tables={})
    evidence = Evidence.load(tmp_path)
    assert len(evidence.language_model("dpo", "noisy")) == 2
    assert any("odd: its config has no" in line for line in evidence.left_out)


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C4", "C6", "C7"])
def test_claims_hold_over_training_seeds(records: dict[str, Path], claim: str) -> None:
    """Found under training noise, and every interval says that it rests on three seeds."""
    found = judged(records["seeds"], claim, Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.HOLDS, [(part.statement, part.effect, part.verdict) for part in found.parts]
    assert {part.value.seeds for part in found.parts} == {3}
    assert all(math.isfinite(part.detectable) for part in found.parts)
    assert any("3 training seeds" in note for note in found.notes)


def test_training_noise_is_not_an_effect(tmp_path: Path) -> None:
    """All methods alike, runs differing by 40 %: with many prompts one seed alone would call such differences certain."""
    same = dataclasses.replace(synthetic.PREDICTED["ipo"], noisy=0.95)
    levels = dict.fromkeys(("dpo", "ipo", "maxpo"), same)
    verdicts = {}
    for seeds in ((0,), SEEDS):
        folder = tmp_path / str(len(seeds))
        truth = synthetic.Truth(levels, prompts=256, seeds=seeds, seed_noise=0.4, strengths=(0.1,))
        found = judged(synthetic.write_language_model(folder, truth), "C1", Domain.LANGUAGE_MODEL)
        verdicts[len(seeds)] = [part.verdict for part in found.parts[1:]]
    assert Verdict.OPEN not in verdicts[1]
    assert set(verdicts[3]) == {Verdict.OPEN}


def test_all_temperatures_are_used(tmp_path: Path) -> None:
    """KL of dpo goes from 5 to 10 nats between log-odds of .847 and 6.213 of the labels' certainty: .932 a unit."""
    truth = synthetic.Truth(
        prompts=128, labels=tuple(synthetic.TEMPERATURES), seeds=SEEDS, seed_noise=0.01, strengths=(0.1,)
    )
    found = judged(synthetic.write_language_model(tmp_path, truth), "C1", Domain.LANGUAGE_MODEL)
    (note,) = (note for note in found.notes if note.startswith("dpo: KL rises by"))
    assert "4 temperatures" in note
    low, high = (float(end) for end in note.split("[")[1].split("]")[0].split(","))
    assert low < 5 / 5.365 < high
    assert high - low < 1.0


def test_partial_support_is_what_c3_is_judged_on_where_it_was_run(tmp_path: Path) -> None:
    synthetic.write_language_model(tmp_path / "full", synthetic.Truth(prompts=96, strengths=(0.1,)))
    kept = {method: dataclasses.replace(one, log_ratio=-0.2) for method, one in synthetic.PREDICTED.items()}
    truth = synthetic.Truth(kept, prompts=96, strengths=(0.1,), top_p=0.5, noise=0.05)
    synthetic.write_language_model(tmp_path / "partial", truth)
    evidence = Evidence.load(tmp_path)
    assert not evidence.left_out
    found = judged(tmp_path, "C3", Domain.LANGUAGE_MODEL)
    assert found.notes[0].startswith("top_p=0.5 support")
    assert found.parts[0].value.estimate == pytest.approx(-0.2, abs=0.02)
    (note,) = (note for note in found.notes if note.startswith("dpo: change under top_p=0.5 less full support"))
    assert 11 < float(note.split("support ")[1].split()[0]) < 12.5
    # other claims stay with the full support
    assert {one.support for one in evidence.language_model()} == {"full"}


def test_a_verdict_must_survive_the_number_of_claims(records: dict[str, Path]) -> None:
    found = {one.claim.id: one for one in adjusted_findings(CLAIMS, Evidence.load(records["seeds"])) if one.parts}
    assert set(found) == {"C1", "C2", "C3", "C4", "C6", "C7"}
    for one in found.values():
        assert one.p_value <= one.adjusted_p <= 6 * one.p_value + 1e-12
        assert one.verdict is Verdict.HOLDS
    weak = Interval(1.0, 0.02, 1.98, 50)  # p = .0456 alone
    claim = dataclasses.replace(
        BY_ID["C1"], bandit=None, language_model=lambda evidence: Judgement([above("a", weak)], [])
    )
    alone, paired = (adjusted_findings([claim] * n, Evidence(())) for n in (1, 2))
    assert alone[0].verdict is Verdict.HOLDS
    assert [one.verdict for one in paired] == [Verdict.OPEN] * 2
    assert "not after Holm over 2 claims" in paired[0].notes[0]


def test_the_p_of_a_claim_is_that_of_its_weakest_part() -> None:
    strong, weak = above("a", Interval(2.0, 1.0, 3.0, 9)), above("b", Interval(2.0, 0.1, 3.9, 9))
    against = above("c", Interval(-2.0, -3.0, -1.0, 9))
    one = Finding(BY_ID["C1"], Domain.LANGUAGE_MODEL, Verdict.HOLDS, (strong, weak, exact("d", True, 1.0)))
    assert one.p_value == weak.p_value > strong.p_value
    failed = Finding(BY_ID["C1"], Domain.LANGUAGE_MODEL, Verdict.FAILS, (strong, weak, against))
    assert failed.p_value == pytest.approx(3 * against.p_value)


def test_repeated_samples_are_a_condition_of_their_own(tmp_path: Path) -> None:
    """Seen eight times the sampled form has lost 4 nats more than seen once, the full-token form .1; C9 alone uses them."""
    base = synthetic.PREDICTED["maxpo"]
    for tokens, samples, log_ratio in (
        ("full", 320, -0.5),
        ("full", 40, -0.6),
        ("sampled", 320, -2.0),
        ("sampled", 40, -6.0),
    ):
        levels = {"maxpo": dataclasses.replace(base, log_ratio=log_ratio)}
        truth = synthetic.Truth(levels, (0.1,), hyperparameters={"tokens": tokens}, reference_samples=samples)
        synthetic.write_language_model(tmp_path / f"{tokens}{samples}", truth)
    evidence = Evidence.load(tmp_path)
    assert not evidence.left_out
    assert {one.passes for one in evidence.settings} == {1.0, 8.0}
    assert {one.passes for one in evidence.language_model()} == {1.0}
    found = judged(tmp_path, "C9", Domain.LANGUAGE_MODEL)
    assert found.verdict is Verdict.HOLDS, [(part.statement, part.effect) for part in found.parts]
    effects = {part.statement: part.value.estimate for part in found.parts}
    assert len(effects) == 4
    assert effects[
        "maxpo(0.1), sampled form: samples seen once less 8 times: log-likelihood of a held-out reference sample"
    ] == (pytest.approx(4.0, abs=0.4))


def test_other_held_out_samples_are_not_paired_by_their_number(tmp_path: Path) -> None:
    """Samples differ by 20 nats, item i of both data settings alike by chance: paired by number that would vanish from the interval."""
    base, spread = synthetic.PREDICTED["maxpo"], 20.0
    for tokens, samples, log_ratio in (("full", 40, -0.6), ("sampled", 320, -2.0), ("sampled", 40, -6.0)):
        truth = synthetic.Truth(
            {"maxpo": dataclasses.replace(base, log_ratio=log_ratio)},
            (0.1,),
            ("near_deterministic",),
            hyperparameters={"tokens": tokens},
            reference_samples=samples,
            spread=spread,
        )
        synthetic.write_language_model(tmp_path / f"{tokens}{samples}", truth)
    found = judged(tmp_path, "C9", Domain.LANGUAGE_MODEL)
    forms, passes = found.parts
    assert "full-token less sampled" in forms.statement and "seen once less 8 times" in passes.statement
    assert forms.value.low > 4.0  # the same held-out samples: paired
    assert passes.value.estimate == pytest.approx(4.0, abs=0.4)
    half = (passes.value.high - passes.value.low) / 2
    assert half == pytest.approx(1.96 * spread * math.sqrt(2 / 64), rel=0.25)
    assert found.verdict is Verdict.OPEN
    assert any("nothing is paired; 1 seed and 1 seed" in note for note in found.notes)


def test_only_runs_of_the_same_held_out_prompts_are_compared(tmp_path: Path) -> None:
    """Another number of reference samples, or another seed of the data, deals out other held-out prompts under the same numbers."""
    for name, truth in (
        ("usual", synthetic.Truth(strengths=(0.1,), seeds=SEEDS)),
        ("more", synthetic.Truth(strengths=(0.1,), reference_samples=640)),
        ("reseeded", synthetic.Truth(strengths=(0.1,), seeds=(7,), data_seed=1)),
    ):
        synthetic.write_language_model(tmp_path / name, truth)
    evidence = Evidence.load(tmp_path)
    assert {len(one.runs) for one in evidence.language_model()} == {3}
    assert {one.passes for one in evidence.language_model()} == {1.0}
    said = "\n".join(evidence.left_out)
    assert "measured on other held-out prompts than most" in said and str(tmp_path / "more") in said
    assert "that differ in model, data or training, such as" in said and str(tmp_path / "reseeded") in said
    # One's own pairs keep their held-out part whatever is sampled of the reference.
    own = {"data": {"preferences": "mine.jsonl"}, "seed": 0}
    assert held_out_of(own | {"reference": {"samples": 40}}) == held_out_of(own | {"reference": {"samples": 320}})


def test_a_part_that_fails_unsampled_decides_without_a_p() -> None:
    parts = (Part("memory", Verdict.FAILS, Interval(0.8)), above("time", Interval(0.9, 0.7, 1.2, 9), bound=1.0))
    assert math.isnan(Finding(BY_ID["C5"], Domain.LANGUAGE_MODEL, Verdict.FAILS, parts).p_value)


def test_equal_reward_takes_back_the_likelihood_that_moving_further_cost(tmp_path: Path) -> None:
    """Rewards 4.3 and 2.3 at the end from .3, likelihood -8 and -4 along with it: at the reward 2.3 both have lost 4 nats."""
    base = synthetic.PREDICTED["dpo"]
    levels = {
        "dpo": dataclasses.replace(base, reward=4.3, log_ratio=-8.0),
        "ipo": dataclasses.replace(base, reward=2.3, log_ratio=-4.0),
        "maxpo": dataclasses.replace(base, reward=2.3, log_ratio=-1.0),
    }
    truth = synthetic.Truth(
        levels, (0.1,), ("near_deterministic",), prompts=128, noise=0.2, seeds=SEEDS, seed_noise=0.01
    )
    evidence = Evidence.load(synthetic.write_language_model(tmp_path, truth))
    found = {one.objective: one for one in evidence.language_model()}
    equal, less = (
        difference_at_equal_reward(found[name], found["dpo"], "held_out_reference_samples", "log_ratio")
        for name in ("ipo", "maxpo")
    )
    assert equal.low < 0 < equal.high
    assert less.low < 3.0 < less.high
    assert less.high - less.low < 1.0
    ends = found["ipo"].values("held_out_reference_samples", "log_ratio") - found["dpo"].values(
        "held_out_reference_samples", "log_ratio"
    )
    assert ends.to_numpy().mean() == pytest.approx(4.0, abs=0.2)


def test_every_figure_of_a_claim_is_a_module() -> None:
    folder = Path(__file__).parents[2] / "paper_figures"
    missing = [name for claim in CLAIMS for name in claim.figures if not (folder / f"{name}.py").is_file()]
    assert not missing

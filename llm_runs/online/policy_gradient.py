"""rlhf_ppo and espo: epochs of minibatches on one round's rollouts, then new rollouts.

Both maximise the mean of ratio x advantage, the ratio being pi/pi_old of a rollout or of its tokens (`objectives.surrogate`), the advantage
the rollout's reward less a baseline. With the KL in the reward (arXiv 2203.02155, eq. 2) the reward is
r - beta log(pi_old/pi_ref) of the rollout; else the KL is a term of the loss (`objectives.penalty`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

import objectives
from llm_runs import guards, memory, saved_batches, training
from llm_runs.config import OnlineConfig, PolicyGradientConfig
from llm_runs.examples import TokenSample
from llm_runs.logprobs import collate, completion_logits, event_kl, full_precision
from llm_runs.microbatches import TrainingError
from llm_runs.models import autocast
from llm_runs.online.baselines import ValueFunction, leave_one_out, prompt_features
from llm_runs.online.rounds import Bench, Loop, metric_frame, metric_rows
from llm_runs.packing import TokenSequence
from llm_runs.scoring import Scorer
from llm_runs.watch import Watch


@dataclass(frozen=True)
class Rollouts:
    """A round's samples with all that does not change while it trains: N rollouts, T token columns, 0 at padding."""

    sequences: list[TokenSequence]
    old_token_logps: Tensor  # (N, T)
    ref_token_logps: Tensor  # (N, T)
    mask: Tensor  # (N, T)
    advantages: Tensor  # (N,)

    def batch(self, chosen: Tensor, token_logps: Tensor, policy_kl: Tensor | None = None) -> objectives.RolloutBatch:
        """The rollouts `chosen` (n,) as the loss sees them; token_logps (n, t) of the policy, t their longest."""
        columns = slice(0, token_logps.shape[1])
        old = self.old_token_logps[chosen, columns]
        return objectives.RolloutBatch(
            logps=token_logps.sum(-1),
            policy_kl=policy_kl,
            advantages=self.advantages[chosen],
            old_logps=old.sum(-1),
            token_logps=token_logps,
            old_token_logps=old,
            ref_token_logps=self.ref_token_logps[chosen, columns],
            mask=self.mask[chosen, columns],
        )


class PolicyGradient(Loop):
    """What both share. Adam's moments live on between rounds. With LoRA the reference is the policy with its adapters off;
    else it is loaded to score a round's rollouts and freed, or kept beside the policy where the loss needs its distributions.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        training.disable_dropout(self.model)
        lora = bench.config.training.lora
        if lora is not None:
            self.model = training.with_adapters(self.model, lora, bench.seed("adapters") % 2**32)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        settings, common = bench.online.policy_gradient, bench.config.training
        self.optimiser = torch.optim.AdamW(
            self.trained.values(), lr=settings.learning_rate, weight_decay=common.weight_decay
        )
        self.value = ValueFunction(self.model.config.get_text_config().hidden_size)
        self.updates = 0
        self.watch = Watch(bench.config.guards)
        self._reference: PreTrainedModel | None = None

    @classmethod
    def settings(cls, config: OnlineConfig) -> dict[str, Any]:
        """The section's, and how much is sampled."""
        own = asdict(config.policy_gradient)
        if own["kl"] == "reward":
            del own["estimate"]
        return own | {"rounds": config.rounds, "prompts": config.prompts, "samples": config.samples}

    def surrogate(self) -> objectives.Objective:
        """The method's surrogate, without penalty."""
        raise NotImplementedError

    def stops(self, deviation: float) -> bool:
        """Whether a round ends before an update, at this mean |ratio - 1| of its minibatch."""
        raise NotImplementedError

    def objective(self) -> objectives.Objective:
        """What minibatches minimise."""
        settings = self.bench.online.policy_gradient
        if settings.kl == "reward" or settings.beta == 0:
            return self.surrogate()
        return self.surrogate() + objectives.penalty(settings.beta, settings.estimate)

    def advance(self, number: int, folder: Path) -> pd.DataFrame:
        """Rollouts, then updates. Metrics of the round at its first update: reward, kl (mean log pi/pi_ref of the rollouts), entropy
        (mean -log pi), advantage_std; of every minibatch: loss, loss/<term>, ratio (mean), ratio_deviation (mean |ratio - 1|), clip_share,
        grad_norm; at the last one: round_updates, stopped (1 where the stopping rule ended the round); guard/<guard> = 1 where one warned.
        """
        with memory.lower("online.policy_gradient.minibatch", self.bench.online.policy_gradient.minibatch, kept=False):
            return self._round(number)

    def _round(self, number: int) -> pd.DataFrame:
        bench, settings = self.bench, self.bench.online.policy_gradient
        samples = bench.rollouts(self.model, bench.prompts(number), bench.online.samples, number)
        rollouts, about = self.prepare(samples, number)
        about |= self._watch_round(rollouts, number)
        rows = metric_rows(self.updates + 1, about)
        order = torch.Generator().manual_seed(bench.seed("order", number))
        first = self.updates
        count = len(rollouts.sequences)
        minibatches = settings.epochs * -(-count // settings.minibatch)
        stopped = False
        with tqdm(total=minibatches, desc=self.name, unit="update", leave=False) as bar:
            for _ in range(settings.epochs):
                for chosen in torch.split(torch.randperm(count, generator=order), settings.minibatch):
                    stopped, values = self.update(rollouts, chosen)
                    rows += metric_rows(self.updates + stopped, values)
                    bar.update()
                    if stopped:
                        break
                if stopped:
                    break
        self.scorer.release(self.model)
        end = {"round": number, "round_updates": self.updates - first, "stopped": float(stopped)}
        rows += metric_rows(self.updates, end)
        return metric_frame(rows)

    def _watch_round(self, rollouts: Rollouts, number: int) -> dict[str, float]:
        """The guards of how far the policy is from the reference: nowhere before the first update, later within the limit."""
        old, ref, mask = rollouts.old_token_logps, rollouts.ref_token_logps, rollouts.mask
        everything = torch.arange(len(rollouts.sequences))
        found = {}
        if self.updates == 0:
            batch = objectives.RolloutBatch(logps=old.sum(-1), token_logps=old, ref_token_logps=ref)
            reduced = self.model.device.type == "cuda" or self.model.dtype == torch.bfloat16
            found["start"] = guards.differs_at_start({"rollouts": batch}, reduced)
        kl = {"rollouts": (old - ref).sum() / mask.sum()}
        found["kl"] = guards.beyond(kl, self.bench.config.training.kl_limit)
        about = {"kl_per_token/rollouts": kl["rollouts"].item()}
        for guard, reason in found.items():
            if self.meet(guard, reason, rollouts, everything):
                about[f"guard/{guard}"] = 1.0
        return about

    def meet(self, guard: str, reason: str | None, rollouts: Rollouts, chosen: Tensor) -> bool:
        """Stop (TrainingError), warn or do nothing; the rollouts `chosen` are saved in the run's folder `guards`. Whether it warned."""

        def save(name: str) -> Path:
            places = chosen.tolist()
            sequences = {place: TokenSample(*rollouts.sequences[place]) for place in places}
            numbers = {
                "old_token_logps": rollouts.old_token_logps[chosen],
                "ref_token_logps": rollouts.ref_token_logps[chosen],
                "advantages": rollouts.advantages[chosen],
            }
            about = {"method": self.name, "update": self.updates + 1, "reason": reason}
            folder = self.bench.experiment.out / "guards" / self.name
            return saved_batches.save_batch(
                folder, numbers, {"rollouts": sequences}, about, self.bench.experiment.tokenizer, name
            )

        where = f"{self.name} at update {self.updates + 1}: {reason}" if reason else None
        return self.watch.meet(guard, where, save, self._failure)

    def update(self, rollouts: Rollouts, chosen: Tensor) -> tuple[bool, dict[str, float]]:
        """One minibatch: its statistics, and a step on it unless the stopping rule holds (then True).

        Raises TrainingError where the loss or the gradient is not finite; with guards.not_finite=warn the step is left out.
        """
        settings = self.bench.online.policy_gradient
        objective = self.objective()
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.model.device):
            batch = self.batch(rollouts, chosen, exact_kl="policy_kl" in objective.needs)
        values = _statistics(batch, settings)
        if self.stops(values["ratio_deviation"]):
            return True, {f"stopped/{name}": value for name, value in values.items()}
        try:
            terms = objective.term_values({"rollouts": batch})
        except objectives.ObjectiveError as error:
            if all(bool(torch.isfinite(tensor).all()) for tensor in batch.tensors().values()):
                raise self._failure(f"{self.name} at update {self.updates + 1}: {error}") from error
            return self._left_out(str(error), rollouts, chosen)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.bench.config.training.max_grad_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            reason = f"the loss is {loss.item():g} and the gradient's norm {norm.item():g}"
            return self._left_out(reason, rollouts, chosen)
        self.optimiser.step()
        self.updates += 1
        parts = {f"loss/{name}": value.item() for name, value in terms.items()}
        return False, values | parts | {"loss": loss.item(), "grad_norm": norm.item()}

    def _left_out(self, reason: str, rollouts: Rollouts, chosen: Tensor) -> tuple[bool, dict[str, float]]:
        """An update that was not made, or the error of it."""
        self.meet("not_finite", reason, rollouts, chosen)
        self.optimiser.zero_grad(set_to_none=True)
        self.updates += 1
        return False, {"loss": float("nan"), "guard/not_finite": 1.0}

    def batch(self, rollouts: Rollouts, chosen: Tensor, *, exact_kl: bool) -> objectives.RolloutBatch:
        """The minibatch under the policy as it is, with gradients."""
        sequences = [rollouts.sequences[i] for i in chosen.tolist()]
        if not exact_kl:
            rows = self.scorer.pack(sequences).to(self.model.device)
            return rollouts.batch(chosen, rows.by_sequence(self.scorer.score(self.model, rows).logps))
        inputs = collate([prompt for prompt, _ in sequences], [completion for _, completion in sequences])
        inputs = inputs.to(self.model.device)
        logps = full_precision(completion_logits(self.model, inputs)).log_softmax(-1)
        with torch.no_grad(), self.reference() as reference:
            ref_logps = full_precision(completion_logits(reference, inputs)).log_softmax(-1)
        mask = inputs.completion_mask
        kl = torch.where(mask, event_kl(logps, ref_logps).sum(-1), 0.0).sum(-1)
        own = torch.where(mask, logps.gather(-1, inputs.targets[..., None])[..., 0], 0.0)
        return rollouts.batch(chosen, own, kl)

    def prepare(self, samples: Sequence[TokenSample], number: int) -> tuple[Rollouts, dict[str, float]]:
        """Log-probs under policy and reference, rewards with their penalty, advantages."""
        settings, online = self.bench.online.policy_gradient, self.bench.online
        sequences = [(entry.prompt_ids, entry.completion_ids) for entry in samples]
        self.scorer = Scorer(
            self.model,
            sequences,
            self.bench.config.training.share_prompt,
            self.bench.config.training.logits_memory * 2**20,
        )
        self.model.eval()
        old, mask = self.token_logps(self.model, sequences)
        with self.reference() as reference:
            ref, _ = self.token_logps(reference, sequences)
        if self.objective().needs & {"policy_kl"} == set():
            self._reference = None  # nothing needs it before the next round
        rewards = torch.tensor([entry.reward for entry in samples], dtype=torch.float64)
        log_ratios = (old - ref).sum(-1).double().cpu()
        totals = rewards - settings.beta * log_ratios if settings.kl == "reward" else rewards
        about = {
            "reward": rewards.mean().item(),
            "kl": log_ratios.mean().item(),
            "entropy": -old.sum(-1).double().mean().item(),
        }
        if settings.baseline == "group":
            advantages = totals - leave_one_out(totals.view(-1, online.samples)).flatten()
        else:
            features = prompt_features(self.model, [prompt for prompt, _ in sequences[:: online.samples]])
            features = features.repeat_interleave(online.samples, dim=0)
            known = self.value.known
            advantages = totals - (self.value.predict(features) if known else leave_one_out(totals[None])[0])
            self.value.learn(
                features, totals
            )  # after its prediction: a baseline that saw these rewards would bias the gradient
        about["advantage_std"] = advantages.std().item()
        return Rollouts(sequences, old, ref, mask, advantages.to(old)), about

    @torch.no_grad()
    def token_logps(self, model: Any, sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor]:
        """Log-probs of the completions' tokens, (N, T) with their mask, under the policy or the reference."""
        size = self.bench.online.policy_gradient.minibatch
        width = max(len(completion) for _, completion in sequences)
        logps = torch.zeros(len(sequences), width, device=self.model.device)
        mask = torch.zeros(len(sequences), width, dtype=torch.bool, device=self.model.device)
        for start in range(0, len(sequences), size):
            rows = self.scorer.pack(sequences[start : start + size]).to(self.model.device)
            with autocast(self.model.device):
                found = rows.by_sequence(self.scorer.score(model, rows).logps)
            place = (slice(start, start + size), slice(0, found.shape[1]))
            logps[place], mask[place] = found.float(), rows.mask
        self.scorer.release(model)
        return logps, mask

    @contextlib.contextmanager
    def reference(self) -> Any:
        """The reference: the policy with its adapters off, or the model itself."""
        if isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield self.model
            return
        if self._reference is None:
            self._reference = self.bench.experiment.load_reference()
        yield self._reference

    def tensors(self) -> dict[str, Tensor]:
        """Trained parameters, Adam's moments, the value function, the number of updates."""
        found = {f"policy/{name}": p.detach().cpu().contiguous().clone() for name, p in self.trained.items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimiser.state[parameter].items():
                found[f"adam/{key}/{name}"] = value.detach().cpu().contiguous().clone()
        return found | {"updates": torch.tensor(self.updates)} | self.value.tensors()

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        for name, parameter in self.trained.items():
            parameter.copy_(tensors[f"policy/{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"adam/{key}/{name}"]
                self.optimiser.state[parameter][key] = value if key == "step" else value.to(parameter.device)
        self.updates = int(tensors["updates"])
        self.value.load(tensors)

    def _failure(self, reason: str) -> TrainingError:
        return TrainingError(f"{reason}. Lower online.policy_gradient.learning_rate, or raise its beta")


class RlhfPpo(PolicyGradient):
    """PPO (arXiv 1707.06347): a ratio past 1 +- clip in the direction of its advantage no longer counts; all epochs are made."""

    name = "rlhf_ppo"

    @classmethod
    def settings(cls, config: OnlineConfig) -> dict[str, Any]:
        """All but espo's delta."""
        return {key: value for key, value in super().settings(config).items() if key != "delta"}

    def surrogate(self) -> objectives.Objective:
        """Clipped."""
        settings = self.bench.online.policy_gradient
        return objectives.surrogate(settings.clip, settings.level)

    def stops(self, deviation: float) -> bool:
        """Never."""
        return False


class Espo(PolicyGradient):
    """Early-stopped policy optimisation (arXiv 2202.00079): no clip; a round ends where mean |ratio - 1| of a minibatch exceeds delta."""

    name = "espo"

    @classmethod
    def settings(cls, config: OnlineConfig) -> dict[str, Any]:
        """All but PPO's clip."""
        return {key: value for key, value in super().settings(config).items() if key != "clip"}

    def surrogate(self) -> objectives.Objective:
        """Not clipped."""
        return objectives.surrogate(None, self.bench.online.policy_gradient.level)

    def stops(self, deviation: float) -> bool:
        """Where the ratios have moved by more than delta."""
        return deviation > self.bench.online.policy_gradient.delta


@torch.no_grad()
def _statistics(batch: objectives.RolloutBatch, settings: PolicyGradientConfig) -> dict[str, float]:
    """ratio, ratio_deviation and clip_share (by the clip, whether it is used or not): means over rollouts or over their tokens."""
    ratio = objectives.log_ratio(batch, settings.level).exp()
    clipped = objectives.is_clipped(batch, settings.clip, settings.level)
    kept = torch.ones_like(clipped)
    if settings.level == "token":
        assert batch.mask is not None
        kept = batch.mask.bool()
    return {
        "ratio": ratio[kept].mean().item(),
        "ratio_deviation": (ratio[kept] - 1.0).abs().mean().item(),
        "clip_share": clipped[kept].float().mean().item(),
    }

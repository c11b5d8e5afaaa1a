"""Any registered objective on pairs inside trl's `DPOTrainer`, for those who train with trl already.

```python
from llm_runs.trl_adapter import ObjectiveTrainer
trainer = ObjectiveTrainer(objective="dpo(beta=0.1)+chosen_nll(weight=0.1)", model=model, args=DPOConfig(...), train_dataset=pairs)
```
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer

import objectives

SUPPLIED = frozenset({"pairs", "ref_logps", "lengths"})
# Settings of trl that shape its own loss, with the values that leave it alone: they would have no effect here.
UNUSED = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
    "ld_alpha": None,
}


class ObjectiveTrainer(DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` with its loss replaced by a registered objective; data, model, reference and loop stay trl's.

    trl keeps a reference model whether the objective needs one or not; only where it does is it run.

    Args:
        objective: an objective or its label, e.g. ``"ipo(tau=0.1)"``. Its sources must be pairs (which stand for candidates and unpaired
            labels where possible).
        others: as for `trl.DPOTrainer`.

    Raises:
        ObjectiveError: the objective needs what trl does not supply, or a setting of trl's own loss is set too.
    """

    def __init__(self, *others: Any, objective: objectives.Objective | str, **named: Any) -> None:
        self.objective = objectives.parse(objective) if isinstance(objective, str) else objective
        if missing := self.objective.needs_on_pairs - SUPPLIED:
            raise objectives.ObjectiveError(
                f"{self.objective.label} needs {', '.join(sorted(missing))}, which trl's DPOTrainer does not supply "
                f"(it has {', '.join(sorted(SUPPLIED))})"
            )
        if self.objective.needs_temperature:
            raise objectives.ObjectiveError(
                f"{self.objective.label}: temperature='auto' must be a number: objective.with_temperature(number)"
            )
        super().__init__(*others, **named)
        for setting, neutral in UNUSED.items():
            if getattr(self.args, setting) != neutral:
                raise objectives.ObjectiveError(
                    f"DPOConfig.{setting} shapes trl's own loss and has no effect here: leave it out and choose the objective"
                )

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The objective's value on trl's padded batch [chosen, rejected]."""
        keys = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(
            **{k: v for k, v in inputs.items() if k not in keys}, use_cache=False, labels=labels, fused_lm_head=True
        )
        shifted = mask[..., 1:]
        chosen, rejected = outputs.log_probs[:, -shifted.shape[1] :].sum(-1).chunk(2)
        chosen_lengths, rejected_lengths = shifted.sum(-1).to(chosen.dtype).chunk(2)
        reference = self._reference_logps(inputs) if "ref_logps" in self.objective.needs else (None, None)
        batch = objectives.PairBatch(
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=reference[0],
            ref_rejected_logps=reference[1],
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
        )
        terms = self.objective.term_values({"pairs": batch})
        loss = torch.stack(list(terms.values())).sum()
        self._record(batch, terms)
        return (loss, outputs) if return_outputs else loss

    def _reference_logps(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if self.precompute_ref_logps:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        model = self.model if self.ref_model is None else self.ref_model
        chosen, rejected = self.compute_ref_log_probs(model, inputs)
        return chosen, rejected

    @torch.no_grad()
    def _record(self, batch: objectives.PairBatch, terms: dict[str, Tensor]) -> None:
        """Into trl's log: each term, the margin (reference-adjusted where there is a reference) and how often it is positive."""
        adjusted = batch.ref_chosen_logps is not None
        margin = objectives.margins.select(adjusted=adjusted, normalized=False).value(batch, self.objective.name)
        values = {f"loss/{name}": value for name, value in terms.items()}
        values |= {"margins": margin.mean(), "accuracies": (margin > 0).float().mean()}
        mode = "train" if self.model.training else "eval"
        for name, value in values.items():
            self._metrics[mode][name].append(self.accelerator.gather(value).mean().item())

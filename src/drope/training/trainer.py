"""The Trainer subclass: our objective, our optimizers, the given order of blocks, whole checkpoints."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from drope.errors import DropeError
from drope.training import processes
from drope.training.checkpoints import checkpoints, write_marker
from drope.training.losses import Logits, Losses, chunked_loss, linear_head
from drope.training.matching import mismatch, outputs_of
from drope.training.optimizers import muon_adamw
from drope.training.virtual_length import weighted_causal_mask

if TYPE_CHECKING:
    from drope.training.config import RecalibrationConfig
    from drope.training.mixed_window import Windows


class RecalibrationTrainer(Trainer):
    """A Trainer for packed blocks without padding: a batch is `{"input_ids": (B, T), "trained": (B, T)}`.

    The loss is the mean over the tokens that are to be predicted in the whole batch of a step, over all micro batches
    and processes, so that neither their number nor how the tokens fall on them changes it.

    Parameters
    ----------
    config : the run's settings
    teacher : the RoPE original, if its logits are part of the objective
    autocast : dtype of the computation over float32 weights; None: as the weights are
    run : identity of the run, kept in its checkpoints
    eos : the id that ends documents, where tokens are to attend within their own only; None: across documents
    match_steps : steps in which the distance from the teacher's hidden states is part of the objective
    rate_factor : from the number of a step to what its learning rate is multiplied with
    windows : decides the rotation and the window of each micro batch, in mixed-window training
    """

    model: Any
    args: Any
    eval_dataset: Any

    def __init__(
        self,
        *args: Any,
        config: RecalibrationConfig,
        teacher: Any,
        autocast: torch.dtype | None,
        run: str,
        rate_factor: Any = None,
        eos: int | None = None,
        match_steps: int = 0,
        windows: Windows | None = None,
        **kwargs: Any,
    ):
        self.windows = windows
        self.config, self.teacher, self.autocast, self.run = config, teacher, autocast, run
        self.rate_factor, self.eos, self.match_steps = rate_factor, eos, match_steps
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = True  # ours is a micro batch's share of the mean of the whole batch
        self._head = linear_head(self.model)
        self._teacher_head = None
        if teacher is not None:
            teacher.to(self.args.device).eval()
            self._teacher_head = linear_head(teacher)
        self._hidden: list[Tensor] = []
        # Sums over tokens (loss, cross entropy, divergence, how many) of the step, and since the history's last row.
        self._sums = torch.zeros(4, device=self.args.device, dtype=torch.float64)
        self._logged = [0.0] * 4

    # -- objective ---------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.windows is not None:
            inputs = self.windows.turn(inputs)
        losses = self._losses(model, inputs, distill=self.config.distill)
        tokens = _predicted(inputs)
        self._sums += torch.stack([*(x.detach().double() for x in losses), torch.ones_like(tokens)]) * tokens
        # Gradients are averaged over the processes, hence their number.
        loss = losses.loss * (tokens / num_items_in_batch * self.args.world_size).to(losses.loss.dtype)
        return (loss, {}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """Tokens to predict in the whole batch of a step, over all micro batches and processes."""
        own = torch.stack([_predicted(batch) for batch in batch_samples]).sum().to(device)
        total: Any = self.accelerator.reduce(own, "sum")
        return total.clamp_min(1)

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        # Autocast around the objective alone: accelerate's mixed precision would rebind the model's forward.
        stack = super().compute_loss_context_manager()
        stack.enter_context(self._precision())
        return stack

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, dtype=self.autocast)

    def _losses(self, model: Any, batch: Any, distill: float) -> Losses:
        """The objective on the blocks of a batch: position t predicts token t + 1 where that is to be predicted."""
        ids, trained = batch["input_ids"], batch["trained"]
        # transformers masks documents apart where positions begin again; without rotation they mean nothing else.
        apart = {} if self.eos is None else {"position_ids": document_positions(ids, self.eos)}
        weighted = self._weighted(batch, apart)
        rows = _predictions(trained)
        matches = self.state.global_step < self.match_steps and model.training
        with contextlib.ExitStack() as stack:
            pair = (self.model, self.teacher) if matches else ()
            caught = [stack.enter_context(outputs_of(m, self.config.match_states)) for m in pair]
            losses = self._predicted_losses(model, ids, rows, apart, weighted, distill, bool(matches))
        if matches:
            losses = losses._replace(loss=losses.loss + self.config.match_weight * mismatch(*caught))
        return losses

    def _predicted_losses(
        self,
        model: Any,
        ids: Tensor,
        rows: Tensor,
        apart: dict[str, Tensor],
        weighted: dict[str, Tensor],
        distill: float,
        teaches: bool,
    ) -> Losses:
        taught = None
        if self.teacher is not None and (distill or teaches):
            with torch.no_grad():
                taught = _unembedded(self.teacher, self._teacher_head, ids, rows, apart)
        if (head := self._whole_head()) is None:
            outputs = model(input_ids=ids, use_cache=False, **(apart | weighted))
            student = Logits(_at(outputs.logits, rows))
        else:
            # The wrapped model runs (its hooks reduce gradients), its last hidden states are caught on their way.
            catch = self.model.base_model.register_forward_hook(lambda *call: self._hidden.append(call[-1][0]))
            try:
                outputs = model(input_ids=ids, use_cache=False, logits_to_keep=1, **(apart | weighted))
            finally:
                catch.remove()
            student = Logits(_at(self._hidden.pop(), rows), *head)
        targets = ids.flatten()[rows + 1]
        losses = chunked_loss(student, targets, taught, distill, self.config.temperature)
        if (
            balance := getattr(outputs, "aux_loss", None)
        ) is not None:  # experts' load, where a model is set to report it
            losses = losses._replace(loss=losses.loss + self.model.config.router_aux_loss_coef * balance)
        return losses

    def _weighted(self, batch: Any, apart: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mask that lets the student's contexts seem longer; the teacher sees them as they are."""
        if (copies := batch.get("log_copies")) is None:
            return {}
        documents = (apart["position_ids"] == 0).cumsum(1) if apart else None
        return {"attention_mask": weighted_causal_mask(copies, self.autocast or self.model.dtype, documents)}

    def _whole_head(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the output layer; None where they are sharded, and the model's own logits are used."""
        if self._head is None or is_deepspeed_zero3_enabled() or hasattr(self._head.weight, "full_tensor"):
            return None
        return self._head.weight, self._head.bias

    def step_loss(self) -> float:
        """The cross entropy of the step that has just ended, over all processes; to be called once a step, by all."""
        sums: Any = self.accelerator.reduce(self._sums, "sum")
        step = sums.tolist()
        self._sums.zero_()
        self._logged = [a + b for a, b in zip(self._logged, step, strict=True)]
        return step[1] / max(step[3], 1)

    def mean_losses(self) -> dict[str, float | None]:
        """Means over the tokens since the last call: objective, cross entropy (`loss`), divergence."""
        objective, loss, divergence, count = self._logged
        self._logged = [0.0] * 4
        count = max(count, 1)
        taught = divergence / count if self.config.distill else None
        return {"loss": loss / count, "objective": objective / count, "divergence": taught}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Cross entropy (nats per token) on the held-out blocks; every process does all of them."""
        self.model.eval()
        if self.windows is not None:
            self.windows.rotate(rescaled=True)  # held-out blocks have the target's length
        total, count = torch.zeros(2, device=self.args.device, dtype=torch.float64)
        blocks = self.eval_dataset
        with torch.no_grad(), self._precision():
            for at in range(0, len(blocks), self.args.per_device_train_batch_size):
                rows = blocks[at : at + self.args.per_device_train_batch_size]
                batch = {name: column.to(self.args.device) for name, column in rows.items()}
                tokens = _predicted(batch)
                total += self._losses(self.model, batch, distill=0.0).cross_entropy * tokens
                count += tokens
        metrics = {f"{metric_key_prefix}_loss": total.item() / max(count.item(), 1)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- optimizer and order -----------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.config.optimizer == "muon" and self.optimizer is None:
            model = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(model))
            settings = (self.args.learning_rate, self.config.weight_decay, self.config.betas, self.config.eps)
            self.optimizer = muon_adamw(model, *settings, decayed)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        if self.rate_factor is not None and scheduler is not None:
            for i, shape in enumerate(scheduler.lr_lambdas):
                scheduler.lr_lambdas[i] = lambda step, shape=shape: shape(step) * self.rate_factor(step)
        return scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        blocks: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(blocks)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Mapping | None = None) -> None:
        # The stock method also pickles the TrainingArguments.
        if self.args.should_save:
            with _quiet():
                self.accelerator.unwrap_model(self.model).save_pretrained(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        # Older checkpoints go only once this one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
            processes.wait()  # each writes the state of its random numbers
            if self.args.should_save:
                write_marker(folder, self.run, self.state.global_step)
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            if _disk_is_full(error):
                raise DropeError(
                    f"The disk is full while writing {folder.name}. Older checkpoints are whole: free space and resume."
                ) from error
            raise
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save and limit:
            for old in checkpoints(Path(self.args.output_dir))[:-limit]:
                shutil.rmtree(old)


def _predicted(batch: Mapping[str, Tensor]) -> Tensor:
    """How many tokens of a batch are predicted; nothing predicts the first of a block."""
    return batch["trained"][:, 1:].sum().double()


def document_positions(ids: Tensor, eos: int) -> Tensor:
    """Positions (B, T) that begin at 0 after each EOS."""
    at = torch.arange(ids.shape[1], device=ids.device)
    begins = torch.zeros_like(ids)
    begins[:, 1:] = torch.where(ids[:, :-1] == eos, at[1:], 0)
    return at - begins.cummax(1).values


def _unembedded(model: Any, head: Any, ids: Tensor, rows: Tensor, apart: dict[str, Tensor]) -> Logits:
    if head is None:
        return Logits(_at(model(input_ids=ids, use_cache=False, **apart).logits, rows))
    hidden = model.base_model(input_ids=ids, use_cache=False, **apart)[0]
    return Logits(_at(hidden, rows), head.weight, head.bias)


def _predictions(trained: Tensor) -> Tensor:
    """Flat positions (N,) in (B T) whose next token is `trained` (B, T); nothing predicts the first of a block."""
    after = trained.clone()
    after[:, 0] = False
    return after.flatten().nonzero()[:, 0] - 1


def _at(x: Tensor, rows: Tensor) -> Tensor:
    """(B, T, D) -> (N, D)"""
    return x.flatten(0, 1)[rows]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bar for writing one file; ours is on the screen already."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _disk_is_full(error: BaseException) -> bool:
    # safetensors and torch report it as errors of their own, with the system's words inside.
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "os error 28" in str(error)

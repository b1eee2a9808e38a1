from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import TrainingArguments

from drope.training import RecalibrationConfig
from drope.training.trainer import RecalibrationTrainer


@pytest.mark.parametrize("distill", [0.0, 0.7])
def test_the_loss_is_the_mean_over_the_tokens_to_predict(make_model, text, tmp_path, distill):
    model, teacher = make_model(), make_model(seed=1)
    config = RecalibrationConfig(data=str(text), tokens="1M", distill=distill)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = RecalibrationTrainer(
        model=model, args=arguments, config=config, teacher=teacher if distill else None, autocast=None, run="x"
    )
    ids = torch.randint(64, (3, 16))
    trained = torch.rand(3, 16) < 0.4
    losses = trainer._losses(model, {"input_ids": ids, "trained": trained}, distill)

    log_p, log_q = (m(input_ids=ids).logits.double().log_softmax(-1) for m in (model, teacher))
    entropies, divergences = [], []
    for b in range(3):
        for t in range(1, 16):
            if trained[b, t]:
                entropies.append(-log_p[b, t - 1, ids[b, t]])
                divergences.append(F.kl_div(log_p[b, t - 1], log_q[b, t - 1], reduction="sum", log_target=True))
    entropy, divergence = torch.stack(entropies).mean(), torch.stack(divergences).mean()
    assert losses.cross_entropy.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert losses.loss.item() == pytest.approx(((1 - distill) * entropy + distill * divergence).item(), rel=1e-5)

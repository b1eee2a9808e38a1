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


@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_the_heldout_loss_is_that_of_the_tokens_however_they_are_split(make_model, text, tmp_path, micro_batch):
    from datasets import Dataset

    model, config = make_model(), RecalibrationConfig(data=str(text), tokens="1M")
    ids, trained = torch.randint(64, (5, 16)), torch.rand(5, 16) < torch.tensor([[0.9], [0.1], [0.5], [0.0], [0.3]])
    heldout = Dataset.from_dict({"input_ids": ids.numpy(), "trained": trained.numpy()}).with_format("torch")
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", per_device_train_batch_size=micro_batch
    )
    trainer = RecalibrationTrainer(
        model=model, args=arguments, config=config, teacher=None, autocast=None, run="x", eval_dataset=heldout
    )
    labels = torch.where(trained, ids, -100)
    expected = F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_document_masks_make_each_document_stand_alone(make_model, text, tmp_path):
    from drope import models

    model, teacher = models.drop(make_model()), make_model(seed=1)
    config = RecalibrationConfig(data=str(text), tokens="1M", distill=0.5, document_mask=True)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = RecalibrationTrainer(
        model=model, args=arguments, config=config, teacher=teacher, autocast=None, run="x", eos=0
    )
    ids = torch.randint(1, 64, (2, 16))
    ids[0, 5] = ids[0, 9] = ids[1, 12] = 0
    pieces = [ids[0, :6], ids[0, 6:10], ids[0, 10:], ids[1, :13], ids[1, 13:]]
    trained = torch.ones_like(ids, dtype=torch.bool)
    for row, at in ((0, 6), (0, 10), (1, 13)):
        trained[row, at] = False  # what begins a document is predicted from the one before it
    losses = trainer._losses(model, {"input_ids": ids, "trained": trained}, 0.5)
    entropy = [F.cross_entropy(model(input_ids=p[None]).logits[0, :-1], p[1:], reduction="sum") for p in pieces]
    divergence = []
    for p in pieces:
        log_p, log_q = (m(input_ids=p[None]).logits[0, :-1].log_softmax(-1) for m in (model, teacher))
        divergence.append(F.kl_div(log_p, log_q, reduction="sum", log_target=True))
    n = sum(len(p) - 1 for p in pieces)
    assert losses.cross_entropy.item() == pytest.approx(sum(entropy).item() / n, rel=1e-5)
    assert losses.divergence.item() == pytest.approx(sum(divergence).item() / n, rel=1e-4)


def test_the_head_and_the_weights_of_a_sharded_model(make_model, text, tmp_path):
    """FSDP2 over gloo with one process: the same loss and gradients, and a whole model afterwards."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    from drope import models
    from drope.training.sharded import is_sharded, unsharded

    config = RecalibrationConfig(data=str(text), tokens="1M")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")

    def backward(model, shard):
        trainer = RecalibrationTrainer(model=model, args=arguments, config=config, teacher=None, autocast=None, run="x")
        if shard:
            mesh = dist.init_device_mesh("cpu", (1,))
            for layer in model.model.layers:
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            fully_shard(model, mesh=mesh, reshard_after_forward=True)
        ids = torch.arange(32).view(2, 16)
        batch = {"input_ids": ids, "trained": torch.ones_like(ids, dtype=torch.bool)}
        loss = trainer._losses(model, batch, 0.0).loss
        loss.backward()
        return loss.item()

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for tied in (True, False):
            plain, sharded = (models.drop(make_model(tie_word_embeddings=tied)) for _ in range(2))
            assert backward(sharded, True) == pytest.approx(backward(plain, False), rel=1e-6)
            assert is_sharded(sharded)
            for (name, p), q in zip(sharded.named_parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(p.grad.full_tensor(), q.grad, msg=name)
            whole = unsharded(sharded)
            assert type(whole) is type(plain)
            assert models.is_position_free(whole)
            ids = torch.arange(20)[None]
            torch.testing.assert_close(whole(input_ids=ids).logits, plain(input_ids=ids).logits)
            models.restore(whole)
            assert not models.is_position_free(whole)
    finally:
        dist.destroy_process_group()

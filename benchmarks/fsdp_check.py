"""Train, checkpoint, resume and export a small model under FSDP2 on one GPU or more; prints PASS or FAIL.

    torchrun --standalone --nproc-per-node 1 benchmarks/fsdp_check.py

What is compared: a sharded run in one go with one that was stopped and resumed, and with a run that is not sharded.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

TOLERANCE = 2e-3  # of the largest weight: sums in another order, in float32


def main() -> int:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from drope import models
    from drope.errors import Interrupted
    from drope.training import RecalibrationConfig, processes, recalibrate
    from drope.training.callbacks import StopCallback

    if not torch.cuda.is_available() or "RANK" not in os.environ:
        print("FAIL: needs a GPU, and torchrun to start it")
        return 1
    processes.set_device()
    device = torch.device("cuda", torch.cuda.current_device())
    processes.start(device)
    tokenizer = models.load("bundled", device="cpu").tokenizer
    assert tokenizer is not None

    def model() -> LlamaForCausalLM:
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=344, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None,
        )  # fmt: skip
        return LlamaForCausalLM(shape).to(device)

    step = 8 * 128

    def config(fsdp: bool) -> RecalibrationConfig:
        return RecalibrationConfig(
            data="stdlib:prose", tokens=12 * step, batch_tokens=step, save_every=3 * step, learning_rate=1e-3, eps=1e-5,
            eval_blocks=2, precision="float32", micro_batch=1, fsdp=fsdp,
        )  # fmt: skip

    folder = processes.by_first(lambda: Path(tempfile.mkdtemp()))
    plain = recalibrate(model(), tokenizer, config(False), folder / "plain")
    whole = recalibrate(model(), tokenizer, config(True), folder / "whole")
    original = StopCallback.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, args, state, control, **kwargs)

    StopCallback.on_step_end = stop  # type: ignore[method-assign]
    try:
        recalibrate(model(), tokenizer, config(True), folder / "halves")
        stopped = False
    except Interrupted:
        stopped = True
    StopCallback.on_step_end = original  # type: ignore[method-assign]
    resumed = recalibrate(model(), tokenizer, config(True), folder / "halves", resume=True)

    checks = {"a signal stops a sharded run with a checkpoint": stopped}
    for name, other in (("an unsharded run", plain), ("a resumed run", resumed)):
        theirs = dict(other.model.named_parameters())
        distance = max(
            float((p.cpu() - theirs[n].cpu()).abs().max() / p.abs().max()) for n, p in whole.model.named_parameters()
        )
        checks[f"weights equal those of {name} (distance {distance:.1e})"] = distance <= TOLERANCE
    if processes.rank() == 0:
        written = models.save(whole.model, folder / "model", tokenizer, target_length=1024)
        ids = torch.arange(64)[None]
        loaded = models.load(written, device="cpu").model
        checks["the export loads as a stock model"] = torch.allclose(
            loaded(input_ids=ids).logits, whole.model(input_ids=ids).logits, atol=1e-4
        )
        for check, passed in checks.items():
            print(f"{'pass' if passed else 'FAIL'}: {check}")
        print("PASS" if all(checks.values()) else "FAIL")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

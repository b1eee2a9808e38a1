"""Fine-tune a converted checkpoint with TRL's SFTTrainer and a LoRA, as any other model.

    pip install 'drope-llm[examples]'
    drope convert bundled --to 8x --out out/nope
    python examples/finetune_trl.py out/nope out/lora

It takes under a minute on a CPU. The conversion here has not been recalibrated: the example shows that the tools work
together, not a useful model.
"""

from __future__ import annotations

import argparse

TEXTS = [
    "The ferry leaves at seven and comes back after dark. Nobody waits for it on Sundays.",
    "She counted seventeen boats, four of them red, and wrote the numbers down.",
    "Water boils at a lower temperature on a mountain, since the air presses less on it.",
    "The key to the attic hangs behind the clock, as it always has.",
]


def main(arguments: list[str] | None = None) -> float:
    """Train and save the adapter; returns how much the loss fell, in nats per token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of a converted checkpoint")
    parser.add_argument("out", help="folder for the adapter")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args(arguments)

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(given.checkpoint)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.checkpoint),
        args=SFTConfig(
            given.out, max_steps=given.steps, per_device_train_batch_size=4, learning_rate=5e-3, max_length=64,
            logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
            seed=0,
        ),
        train_dataset=Dataset.from_dict({"text": TEXTS * 8}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(given.out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; adapter in {given.out}")
    return losses[0] - losses[-1]


if __name__ == "__main__":
    main()

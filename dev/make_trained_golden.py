#!/usr/bin/env python3
"""Writes test/golden/trained: 20 steps of transformers' Trainer with more than adapters in training, for the C program to agree with.

    python dev/make_trained_golden.py              everything; with names of models: those alone

For each model NAME.json: runs of several trained sets (loss and grad_norm of every step, and a probe of every tensor that
changed), and a probe of every gradient of one micro-batch. A probe is [sum of x_i cos(i + 1), sum of |x_i|, the first 8].
A folder in bf16 is trained as the program does it: fp32 masters, and a forward pass that reads them rounded to bf16.
Needs exactly the versions in dev/requirements.txt. Everything is float32 on the CPU, one thread, fixed seeds, no network.
"""
import copy
import json
import shutil
import sys
import tempfile

import make_golden as g
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

OUT = g.GOLDEN / "trained"
RUNS = {
    "llama": ["full", "last:1", "head", "norms"],
    "llama_linear": ["full", "last:1", "embeddings"],
    "qwen2": ["full", "last:1", "lora,head,embeddings"],
    "qwen3": ["full", "last:1", "norms"],
    "mistral": ["full", "last:1", "embeddings"],
    "smollm3": ["full", "last:2"],
    "granite": ["full", "last:1", "norms"],
}
WHOLE = "llama_linear", "last:1"             # whose tensors are kept whole, in last.safetensors
ARGS = dict(learning_rate=2e-3, weight_decay=0.1, max_grad_norm=1.0, max_steps=20, per_device_train_batch_size=4, seed=11)


def probe(x):
    x = x.detach().double().flatten()
    wave = torch.cos(torch.arange(1, x.numel() + 1, dtype=torch.float64))
    return [float(f"{v:.9g}") for v in ((x * wave).sum(), x.abs().sum(), *x[:8])]


def choose(model, what):
    """requires_grad of what --train WHAT names."""
    layers = model.config.num_hidden_layers
    for name, p in model.named_parameters():
        kind = ("embeddings" if "embed_tokens" in name else "head" if "lm_head" in name else
                "norms" if "norm" in name else "weights")
        last = what.startswith("last:") and (name == "model.norm.weight" or any(
            f"layers.{l}." in name for l in range(layers - int(what[5:]), layers)))
        p.requires_grad_(what == "full" or kind in what.split(",") or last)


def collate(rows):
    width = max(len(r["input_ids"]) for r in rows)
    pad = lambda key, value: torch.tensor([r[key] + [value] * (width - len(r[key])) for r in rows])  # noqa: E731
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows])
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": mask}


class Steps(Trainer):
    """Keeps the unrounded loss of every step."""
    losses = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def rounded(optimizer, params):
    """fp32 masters behind parameters that are read rounded to bf16. Returns them."""
    masters = [p.detach().clone() for p in params]

    def before(*_):
        with torch.no_grad():
            for p, m in zip(params, masters):
                p.copy_(m)

    def after(*_):
        with torch.no_grad():
            for p, m in zip(params, masters):
                m.copy_(p)
                p.copy_(p.bfloat16().float())

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return masters


def train(model, rows, bf16):
    with tempfile.TemporaryDirectory() as tmp:
        args = TrainingArguments(output_dir=tmp, lr_scheduler_type="linear", optim="adamw_torch", logging_steps=1, use_cpu=True,
                                 save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **ARGS)
        trainer = Steps(model=model, args=args, train_dataset=rows, data_collator=collate)
        trainer.losses = []
        trainer.create_optimizer()
        names = {n: p for n, p in model.named_parameters() if p.requires_grad}
        masters = rounded(trainer.optimizer, list(names.values())) if bf16 else list(names.values())
        trainer.train()
        norms = [r["grad_norm"] for r in trainer.state.log_history if "grad_norm" in r]
    return [[float(f"{x:.9g}"), float(f"{n:.9g}")] for x, n in zip(trainer.losses, norms, strict=True)], dict(zip(names, masters))


def lines(named):
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in named.items()) + "}"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rows = g.make_data(24, 96, 0.2, 31)
    (OUT / "data.jsonl").write_text("".join(json.dumps(r, separators=(",", ":")) + "\n" for r in rows))
    for name in sys.argv[1:] or RUNS:
        folder = g.GOLDEN / name
        bf16 = json.loads((folder / "config.json").read_text()).get("dtype") == "bfloat16"
        runs = []
        for what in RUNS[name]:
            base = g.load_base(folder)
            if what.startswith("lora"):
                torch.manual_seed(5)
                config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=0.0, init_lora_weights=False,
                                    target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head", "embed_tokens"])
                model = get_peft_model(base, config)
                shutil.rmtree(OUT / "peft", ignore_errors=True)
                model.save_pretrained(str(OUT / "peft"))
                (OUT / "peft" / "README.md").unlink(missing_ok=True)
            else:
                model = base
                choose(model, what)
            log, tensors = train(model, rows, bf16)
            plain = lambda n: n.replace(".modules_to_save.default", "").replace(".default", "")  # noqa: E731
            tensors = {plain(n): t for n, t in tensors.items()}
            if (name, what) == WHOLE:
                save_file({n: t.detach().contiguous().clone() for n, t in tensors.items()}, str(OUT / "last.safetensors"))
            probes = lines({n: probe(t) for n, t in tensors.items()})
            runs.append(f'{{"train": {json.dumps(what)}, "log": {json.dumps(log)}, "tensors": {probes}}}')
            print(name, what, len(tensors), "tensors, loss", log[0][0], "->", log[-1][0])

        model = g.load_base(folder)             # the gradients of the first four rows as one micro-batch
        batch = collate(rows[:4])
        count = int((batch["labels"][:, 1:] != -100).sum())
        loss = model(**batch, num_items_in_batch=count).loss
        loss.backward()
        grads = lines({n: probe(p.grad) for n, p in model.named_parameters()})
        (OUT / f"{name}.json").write_text(f'{{"args": {json.dumps(ARGS)},\n"runs": [\n' + ",\n".join(runs) +
                                          f'],\n"loss": {loss.item():.9g},\n"gradients": {grads}}}\n')


if __name__ == "__main__":
    main()

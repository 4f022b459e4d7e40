#!/usr/bin/env python3
"""Writes test/golden/heads: 20 steps of transformers' Trainer with PEFT's SEQ_CLS, of a whole ...ForSequenceClassification, and of TRL's RewardTrainer, for the C program to agree with.

    python dev/make_head_golden.py

Of each run NAME.json (the options, loss and grad_norm of every step, scikit-learn's metrics of every evaluation, the logits of the last one), NAME.jsonl and NAME.eval.jsonl (the rows), NAME/ (where it started: an adapter with its score, or a whole model).
Needs exactly the versions in dev/requirements.txt and scikit-learn 1.9.1. Everything is float32 on the CPU, one thread, fixed seeds, no network.
"""
import json
import random
import shutil
import tempfile

import make_golden as g
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import pearsonr
from sklearn import metrics as sk
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

OUT = g.GOLDEN / "heads"
ARGS = dict(learning_rate=1e-3, weight_decay=0.05, max_grad_norm=1.0, max_steps=20, seed=13)
RUNS = {
    "two": dict(model="qwen2", K=2, train="lora", batch=6, accumulate=1, weights=[0.75, 2.5], smoothing=0.1),
    "three": dict(model="llama", K=3, train="lora", batch=5, accumulate=1, weights=[1.0, 0.25, 3.0], gamma=2.0),
    "whole": dict(model="qwen3", K=2, train="full", batch=3, accumulate=2),
    "labels": dict(model="mistral", K=3, train="lora", batch=4, accumulate=1, weights=[1.0, 2.0, 0.5], problem="multi_label_classification"),
    "numbers": dict(model="smollm3", K=1, train="lora", batch=4, accumulate=1, problem="regression"),
    "reward": dict(model="../../data/base", K=1, train="lora", batch=3, accumulate=1),
}
WORDS = "the a staff room was very clean dirty kind rude slow quick breakfast bed loud quiet view good bad again never".split()


def rows(run, n, rng, vocab):
    out = []
    for _ in range(n):
        ids = [rng.randrange(1, vocab) for _ in range(rng.randrange(3, 14))]
        if rng.random() < 0.3:
            ids += [0] * rng.randrange(1, 3)                     # the padding token itself: pooling looks before it
        odd = sum(i % 3 == 0 for i in ids) / len(ids)
        if run.get("problem") == "regression":
            label = round(2 * odd - 0.7 + rng.gauss(0, 0.2), 3)
        elif run.get("problem"):
            label = [int(odd > 0.3), int(ids[0] % 2 == 0), int(rng.random() < 0.2)]
        else:
            label = min(run["K"] - 1, int(odd * run["K"] * rng.uniform(0.6, 1.4)))
        out.append({"input_ids": ids, "label": label})
    return out


def collate(batch):
    width = max(len(r["input_ids"]) for r in batch)
    ids = torch.tensor([r["input_ids"] + [0] * (width - len(r["input_ids"])) for r in batch])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in batch])
    whole = isinstance(batch[0]["label"], int)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([r["label"] for r in batch], dtype=torch.long if whole else torch.float)}


def loss_of(run):
    """What replaces the model's own loss: torch's weighted means, and the focal loss of Lin et al. 2017. Of accumulated micro-batches the mean over all their rows: the model's own forward drops
    num_items_in_batch, and the Trainer, which takes it for used, adds the means up without dividing."""
    if run["accumulate"] > 1:
        return lambda outputs, labels, num_items_in_batch=None: torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / (num_items_in_batch if num_items_in_batch is not None else len(labels))
    if "weights" not in run:
        return None
    w = torch.tensor(run["weights"])

    def loss(outputs, labels, num_items_in_batch=None):
        z = outputs.logits
        if run.get("problem"):
            return torch.nn.BCEWithLogitsLoss(pos_weight=w)(z, labels)
        if "gamma" in run:
            log_p = torch.log_softmax(z, -1).gather(1, labels[:, None])[:, 0]
            return (-w[labels] * (1 - log_p.exp()) ** run["gamma"] * log_p).sum() / w[labels].sum()
        return torch.nn.CrossEntropyLoss(weight=w, label_smoothing=run["smoothing"])(z, labels)
    return loss


def metrics_of(run):
    def metrics(p):
        z, y = p.predictions, p.label_ids
        if run.get("problem") == "regression":
            x = z[:, 0]
            return {"mse": sk.mean_squared_error(y, x), "mae": sk.mean_absolute_error(y, x), "r2": sk.r2_score(y, x), "pearson": pearsonr(x, y)[0]}
        if run.get("problem"):
            a = z > 0
            return {"subset_accuracy": sk.accuracy_score(y, a), "micro_f1": sk.f1_score(y, a, average="micro"), "macro_f1": sk.f1_score(y, a, average="macro", zero_division=0)}
        a = z.argmax(-1)
        out = {"accuracy": sk.accuracy_score(y, a), "balanced_accuracy": sk.balanced_accuracy_score(y, a), "macro_f1": sk.f1_score(y, a, average="macro", zero_division=0),
               "weighted_f1": sk.f1_score(y, a, average="weighted", zero_division=0)}
        if run["K"] == 2:
            s = torch.softmax(torch.tensor(z), -1)[:, 1].numpy()
            out |= {"f1": sk.f1_score(y, a, zero_division=0), "roc_auc": sk.roc_auc_score(y, s), "average_precision": sk.average_precision_score(y, s)}
        return out
    return metrics


def start(run, folder, gen):
    """The model to train, saved where it starts."""
    more = {"problem_type": run["problem"]} if run.get("problem") else {}
    model = AutoModelForSequenceClassification.from_pretrained(str(g.GOLDEN / run["model"]), num_labels=run["K"], dtype=torch.float32, attn_implementation="eager", **more)
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(model.score.weight.shape, generator=gen) * 0.3)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = 0
    if run["train"] == "full":
        model.save_pretrained(str(folder))
        return model
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, lora_dropout=0.0, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_A" in name:
                p.copy_(torch.randn(p.shape, generator=gen) * (0.8 / p.shape[1] ** 0.5))
            elif "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=gen) * 0.1)
    peft.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace(str(g.GOLDEN), "test/golden").replace("test/golden/../../", ""))
    return peft


def dump(path, rs):
    path.write_text("".join(json.dumps(r, separators=(",", ":")) + "\n" for r in rs))


def classification(name, run):
    rng, gen = random.Random(len(name)), torch.Generator().manual_seed(len(name))
    model = start(run, OUT / name, gen)
    train, test = rows(run, 29, rng, model.config.vocab_size), rows(run, 17, rng, model.config.vocab_size)
    dump(OUT / f"{name}.jsonl", train)
    dump(OUT / f"{name}.eval.jsonl", test)
    # a weighted mean is one of all rows: in one batch
    args = dict(ARGS, per_device_train_batch_size=run["batch"], gradient_accumulation_steps=run["accumulate"], per_device_eval_batch_size=17 if "weights" in run else 5)
    with tempfile.TemporaryDirectory() as tmp:
        trainer = Trainer(model=model, train_dataset=train, eval_dataset=test, data_collator=collate, compute_loss_func=loss_of(run), compute_metrics=metrics_of(run),
                          args=TrainingArguments(output_dir=tmp, logging_steps=1, eval_strategy="steps", eval_steps=5, save_strategy="no", report_to="none", use_cpu=True,
                                                 remove_unused_columns=False, disable_tqdm=True, label_names=["labels"], dataloader_pin_memory=False, **args))
        trainer.train()
        logits = trainer.predict(test).predictions
    write(name, run, args, trainer, logits)


def reward(name, run):
    import datasets
    from trl import RewardConfig, RewardTrainer

    datasets.disable_progress_bars()
    rng, gen = random.Random(5), torch.Generator().manual_seed(5)
    model = start(run, OUT / name, gen)
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    text = lambda k: " ".join(rng.choice(WORDS) for _ in range(k))  # noqa: E731

    def pairs(n):
        return [{"prompt": text(4) + "? ", "chosen": "good " + text(rng.randrange(1, 7)), "rejected": "bad " + text(rng.randrange(1, 7)), "margin": rng.choice([0.0, 0.5, 1.25])} for _ in range(n)]
    train, test = pairs(20), pairs(10)
    dump(OUT / f"{name}.jsonl", train)
    dump(OUT / f"{name}.eval.jsonl", test)
    args = dict(ARGS, per_device_train_batch_size=run["batch"], gradient_accumulation_steps=1, per_device_eval_batch_size=4)
    with tempfile.TemporaryDirectory() as tmp:
        trainer = RewardTrainer(model=model, processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(train), eval_dataset=datasets.Dataset.from_list(test),
                                args=RewardConfig(output_dir=tmp, logging_steps=1, eval_strategy="steps", eval_steps=5, save_strategy="no", report_to="none", use_cpu=True, bf16=False,
                                                  gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False, disable_dropout=False, **args))
        trainer.train()
    write(name, run, args, trainer, np.zeros((0, 1)))


def write(name, run, args, trainer, logits):
    drop = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    log = [{k: v for k, v in r.items() if k not in drop} for r in trainer.state.log_history if "train_runtime" not in r]
    assert len([r for r in log if "loss" in r]) == 20
    out = {"model": run["model"].replace("../../", ""), "train": run["train"], "labels": run["K"], "problem": run.get("problem", ""), "class_weights": ",".join(str(w) for w in run.get("weights", [])),
           "label_smoothing": run.get("smoothing", 0), "focal_gamma": run.get("gamma", 0), "args": args, "logits": logits.tolist()}
    lines = [json.dumps(out)[:-1] + ', "log": [', ",\n".join(json.dumps(r) for r in log), "]}"]
    (OUT / f"{name}.json").write_text("\n".join(lines) + "\n")
    print(f"{name}: loss {log[0]['loss']:.4f} -> {[r for r in log if 'loss' in r][-1]['loss']:.4f}; {[r for r in log if 'eval_loss' in r][-1]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    for name, run in RUNS.items():
        (reward if name == "reward" else classification)(name, run)

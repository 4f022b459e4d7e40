#!/usr/bin/env python3
"""Loads what train_lora saved of a classification or reward run into transformers and PEFT: no warning, and the same logits.

    ./train_lora evaluate --model MODEL --adapter OUT --data FILE --task classification --output SCORES
    python dev/check_head.py OUT SCORES/predictions.jsonl ROWS.jsonl [MODEL]

OUT is a PEFT folder, or a whole ...ForSequenceClassification; ROWS have `text` or `input_ids`. A model's own weights lack the head: transformers says so once, and PEFT brings it.
"""
import json
import logging
import sys
import warnings

import torch
from peft import AutoPeftModelForSequenceClassification
from pathlib import Path
from transformers import AutoModelForSequenceClassification, AutoTokenizer

out, predictions, rows, *model = sys.argv[1:]
heard = []
warnings.showwarning = lambda message, *rest, **more: heard.append(str(message))
logging.getLogger().addHandler(type("Hear", (logging.Handler,), {"emit": lambda self, r: heard.append(r.getMessage())})())
want = [json.loads(line) for line in open(predictions)]
K = len(want[0]["logits"])
if Path(out, "adapter_config.json").exists():
    base = json.load(open(Path(out, "adapter_config.json")))["base_model_name_or_path"]
    net = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=K, dtype=torch.float32)
else:
    base = out
    net = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    print(type(net).__name__, net.config.id2label, net.config.problem_type, "pad", net.config.pad_token_id)
net.eval()
heard = [h for h in heard if "newly initialized" not in h and "score.weight" not in h and "is_gradient_checkpointing" not in h]  # the last: PEFT's own use of transformers
tokenizer = None
worst = 0.0
for row, p in zip(map(json.loads, open(rows)), want):
    if "input_ids" in row:
        ids = torch.tensor([row["input_ids"]])
    else:
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(base)
        ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        z = net(input_ids=ids).logits[0]
    worst = max(worst, float((z - torch.tensor(p["logits"])).abs().max() / z.abs().max().clamp(min=1)))
print(f"{len(want)} rows, largest difference of the logits {worst:.1e}; {len(heard)} warnings {heard}")
sys.exit(not (worst < 1e-4 and not heard))

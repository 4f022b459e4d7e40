#!/usr/bin/env python3
"""Do transformers and PEFT load what --train writes without a word, and do they measure the same loss?

    python dev/check_trained.py [PROGRAM]        in the repository's root, after `make`

Trains the models of test/golden on test/golden/trained/data.jsonl, every way of training in turn, and merges what stands
beside LoRA. Every tensor must be found, none be left over; the loss of all rows is compared with `evaluate`'s token_loss.
"""
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging as hf_logging  # noqa: E402

DATA = "test/golden/trained/data.jsonl"
ROWS = [json.loads(line) for line in Path(DATA).read_text().splitlines()]
CASES = [("llama", "full", []), ("llama", "head,norms", []), ("qwen2", "last:1", []), ("qwen3", "full", ["--dtype", "f32"]),
         ("qwen3", "embeddings", []), ("mistral", "full", []), ("mistral", "last:1", ["--dtype", "f32"]), ("smollm3", "last:2", []),
         ("granite", "full", []), ("llama", "lora,head", []), ("qwen2", "lora,head,embeddings", []),
         ("qwen3", "lora,norms", []), ("llama_linear", "lora,embeddings", []), ("granite", "lora,head,norms", [])]


class Refuse(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING and "tie_word_embeddings" not in record.getMessage():
            sys.exit(f"FAIL: logged by {record.name}: {record.getMessage()}")


def loss_of(model):
    total = count = 0
    with torch.no_grad():
        for r in ROWS:
            ids, labels = torch.tensor(r["input_ids"]), torch.tensor(r["labels"])[1:]
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
            kept = labels != -100
            total += torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="sum").item()
            count += int(kept.sum())
    return total / count


def whole(folder):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    if any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        sys.exit(f"FAIL: {folder}: {info}")
    return model.eval()


def program(*words):
    done = subprocess.run([*words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FAIL: {' '.join(words)}: {done.stderr or done.stdout}")


def main():
    binary = sys.argv[1] if len(sys.argv) > 1 else "./train_lora"
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()
    for name in ("", "peft", "transformers"):
        logging.getLogger(name).addHandler(Refuse())
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # between the two libraries
    warnings.filterwarnings("ignore", message=".*tie.*")       # PEFT about modules_to_save of tied models, which is what is meant
    for name, what, more in CASES:
        with tempfile.TemporaryDirectory() as tmp:
            base, out, merged = f"test/golden/{name}", f"{tmp}/out", f"{tmp}/merged"
            program(binary, "--model", base, "--data", DATA, "--train", what, "--max-steps", "6", "--learning-rate", "3e-3",
                    "--output", out, *more)
            adapter = ["--adapter", out] if "lora" in what else []
            program(binary, "evaluate", "--model", base if adapter else out, *adapter, "--data", DATA, "--output", f"{tmp}/scores")
            want = json.loads(Path(f"{tmp}/scores/evaluation.json").read_text())["columns"][0]["token_loss"]
            if adapter:
                program(binary, "merge", "--model", base, *adapter, "--output", merged)
                model = PeftModel.from_pretrained(whole(base), out).eval()
                disk, there = load_file(f"{out}/adapter_model.safetensors"), get_peft_model_state_dict(model, save_embedding_layers=False)
                if set(disk) != set(there):
                    sys.exit(f"FAIL: {name} {what}: only on disk {sorted(set(disk) - set(there))}, only in PEFT {sorted(set(there) - set(disk))}")
                losses = {"PEFT": loss_of(model), "merged": loss_of(whole(merged))}
            else:
                losses = {"transformers": loss_of(whole(out))}
        bf16 = json.loads(Path(f"{base}/config.json").read_text()).get("dtype") == "bfloat16" and adapter
        for who, loss in losses.items():
            print(f"{name:13} {what:22} {' '.join(more):12} token loss {want:.6f}, {who} {loss:.6f}")
            if not abs(loss - want) <= (1e-3 if bf16 and who == "merged" else 2e-6) * want:
                sys.exit("FAIL: they differ")
    print("ok")


if __name__ == "__main__":
    main()

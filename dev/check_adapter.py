#!/usr/bin/env python3
"""Does PEFT load this adapter without a word, and does it compute the same logits?

    python dev/check_adapter.py MODEL_FOLDER ADAPTER_FOLDER [--logits out.safetensors] [--tol 1e-4]

Every warning, from the warnings module or from a logger, is an error, and so is a missing or an unused tensor.
out.safetensors holds ids int32 [N], cu_seqlens int32 [nseq+1] and logits float32 [N,V], each sequence run alone.
The base model is loaded as float32, whatever its dtype on disk.
"""
import argparse
import logging
import os
import sys
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import torch  # noqa: E402
from peft import PeftConfig, PeftModel  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging as hf_logging  # noqa: E402


class Refuse(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            sys.exit(f"FAIL: logged by {record.name}: {record.getMessage()}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("adapter")
    ap.add_argument("--logits")
    ap.add_argument("--tol", type=float, default=1e-4, help="largest allowed |difference| of a logit")
    a = ap.parse_args()
    torch.set_num_threads(1)
    hf_logging.disable_progress_bar()
    base = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, attn_implementation="eager").eval()

    warnings.simplefilter("error")  # from here on: the adapter
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # between the two libraries
    for name in ("", "peft", "transformers"):
        logging.getLogger(name).addHandler(Refuse())
    try:
        cfg = PeftConfig.from_pretrained(a.adapter)
        model = PeftModel.from_pretrained(base, a.adapter).eval()
        disk = load_file(os.path.join(a.adapter, "adapter_model.safetensors"))
        mem = get_peft_model_state_dict(model, save_embedding_layers=False)
    except Warning as w:
        sys.exit(f"FAIL: {type(w).__name__}: {w}")
    if set(disk) != set(mem):
        sys.exit(f"FAIL: only on disk {sorted(set(disk) - set(mem))}, only in the model {sorted(set(mem) - set(disk))}")
    for k, v in disk.items():
        if v.shape != mem[k].shape or not torch.equal(v.float(), mem[k].float()):
            sys.exit(f"FAIL: {k} was not loaded as it is on disk")
        if not torch.isfinite(v).all():
            sys.exit(f"FAIL: {k} is not finite")
    said = f"ok: {len(disk)} tensors, r={cfg.r} alpha={cfg.lora_alpha} rslora={cfg.use_rslora}"

    if a.logits:
        t = load_file(a.logits)
        ids, cu, want = t["ids"].long(), t["cu_seqlens"].tolist(), t["logits"].float()
        with torch.no_grad():
            got = torch.cat([model(input_ids=ids[x:y][None], use_cache=False).logits[0] for x, y in zip(cu, cu[1:])])
        if got.shape != want.shape:
            sys.exit(f"FAIL: logits have shape {list(want.shape)}, PEFT has {list(got.shape)}")
        diff = (got - want).abs().max().item()
        said += f", max |logit difference| {diff:.3e} (largest logit {got.abs().max():.3f})"
        if not diff <= a.tol:
            sys.exit(f"FAIL: max |logit difference| {diff:.3e} > {a.tol:g}")
    print(said)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes the golden files under test/golden: what Transformers, PEFT and TRL compute, for the C program to agree with.

    python dev/make_golden.py models      tiny models, adapters, logits, loss, gradients; `models NAME ...`: those alone
    python dev/make_golden.py adapters    adapters as other people write them, and the logits that PEFT has with them
    python dev/make_golden.py trl         whole SFTTrainer runs, step by step; `trl NAME ...`: those alone
    python dev/make_golden.py adamw_8bit  steps of bitsandbytes' AdamW8bit
    python dev/make_golden.py labels      what SFTTrainer puts in the loss of pairs and of tokenised rows
    python dev/make_golden.py randperm    torch.randperm sequences
    python dev/make_golden.py trl_evaluation  SFTTrainer.evaluate(), with and without packing
    python dev/make_golden.py few_shot    the loss of rows behind solved examples, on data/base
    python dev/make_golden.py generation  greedy generate() on the tiny models, and what the logits processors leave of a distribution
    python dev/make_golden.py all

Needs exactly the versions in dev/requirements.txt. Everything is float32 on the CPU, one thread, fixed seeds, no network.
"""
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent


def check_versions():
    bad = []
    for line in (HERE / "requirements.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line or line.startswith("-"):
            continue
        name, want = line.split("==")
        have = version(name).split("+")[0]
        if have != want:
            bad.append(f"{name}: have {have}, want {want}")
    if bad:
        sys.exit("versions differ from dev/requirements.txt:\n  " + "\n  ".join(bad))


check_versions()
if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT writes target_modules in set order
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.chdir(HERE.parent)  # paths written into the files are relative to the repository root

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from peft.optimizers import create_loraplus_optimizer  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

torch.set_num_threads(1)
GOLDEN = Path("test/golden")
ALL7 = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# ---------------------------------------------------------------------------------------------------------- models

def old_spelling_linear(cfg):
    """The config.json spelling of transformers 4: torch_dtype, rope_theta and rope_scaling at the top level."""
    rope = cfg.pop("rope_parameters")
    cfg["rope_theta"] = rope["rope_theta"]
    cfg["rope_scaling"] = {"type": rope["rope_type"], "factor": rope["factor"]}
    cfg["torch_dtype"] = cfg.pop("dtype")
    cfg["transformers_version"] = "4.40.0"


MODELS = {
    # all three regions of the llama3 frequency map are used: wavelengths 6.3 (kept), 19.9 (blended), 62.8 and 199 (divided)
    "llama": dict(
        config=lambda: LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, max_position_embeddings=256,
            rope_parameters={"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
        lora=dict(r=3, lora_alpha=6, target_modules=ALL7), lens=[7, 1, 12, 37, 5], seed=101),
    "llama_linear": dict(
        config=lambda: LlamaConfig(
            vocab_size=112, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, head_dim=12, attention_bias=False, rms_norm_eps=1e-6, tie_word_embeddings=True,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
        edit=old_spelling_linear,
        lora=dict(r=1, lora_alpha=2, target_modules=["q_proj", "v_proj"]), lens=[7, 1, 12, 5], seed=102),
    "qwen2": dict(
        config=lambda: Qwen2Config(
            vocab_size=128, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=True, max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        lora=dict(r=8, lora_alpha=4, use_rslora=True, target_modules=ALL7), lens=[9, 2, 14, 1, 6], seed=103),
    "qwen3": dict(
        config=lambda: Qwen3Config(
            vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, tie_word_embeddings=True,
            max_position_embeddings=128, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        lora=dict(r=8, lora_alpha=16, target_modules=ALL7), lens=[7, 1, 12, 5, 17], seed=104,
        extra=dict(suffix="_layers", lens=[6, 1, 9, 4], lora=dict(r=8, lora_alpha=16, target_modules=ALL7, layers_to_transform=[1]))),
    "mistral": dict(
        config=lambda: MistralConfig(
            vocab_size=104, hidden_size=48, intermediate_size=72, num_hidden_layers=2, num_attention_heads=8,
            num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=False, sliding_window=None,
            max_position_embeddings=128, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        dtype=torch.bfloat16, shard="24KB",
        lora=dict(r=4, lora_alpha=6, target_modules=["gate_proj", "up_proj", "down_proj"]), lens=[7, 1, 12, 5], seed=105),
    # layer 2 of 4 has no rotary embedding
    "smollm3": dict(
        config=lambda: SmolLM3Config(
            vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, no_rope_layer_interval=3, max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 5000000.0}),
        dtype=torch.bfloat16,
        lora=dict(r=4, lora_alpha=8, target_modules=ALL7), lens=[7, 1, 12, 5, 17], seed=106),
    # all four multipliers and every bias; a stream so small that eps counts
    "granite": dict(
        config=lambda: GraniteConfig(
            vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-4, tie_word_embeddings=True, max_position_embeddings=128,
            attention_bias=True, mlp_bias=True, embedding_multiplier=0.1, attention_multiplier=0.2,
            residual_multiplier=0.22, logits_scaling=6.0,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}),
        lora=dict(r=5, lora_alpha=10, target_modules=ALL7), lens=[7, 1, 12, 5, 17], seed=107),
}


def load_base(folder):
    """The folder as float32, whatever the dtype on disk."""
    m = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager")
    assert all(p.dtype == torch.float32 for p in m.parameters())
    return m.eval()


def randomise(model, gen):
    for name, p in model.named_parameters():
        with torch.no_grad():
            if "norm" in name:
                p.copy_(0.5 + torch.rand(p.shape, generator=gen))
            elif name.endswith(".bias"):
                p.copy_(0.2 * torch.randn(p.shape, generator=gen))
            elif "embed_tokens" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=gen))
            else:
                p.copy_(0.18 * torch.randn(p.shape, generator=gen))


def random_adapter(base, lora, gen, folder):
    """A PEFT adapter with both A and B random, saved by PEFT."""
    cfg = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", init_lora_weights=False, **lora)
    pm = get_peft_model(base, cfg)
    with torch.no_grad():
        for name, p in pm.named_parameters():
            if "lora_A" in name:
                p.copy_(torch.randn(p.shape, generator=gen) * (0.8 / p.shape[1] ** 0.5))
            elif "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=gen) * 0.1)
    shutil.rmtree(folder, ignore_errors=True)
    pm.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)


def make_labels(ids, lens, gen):
    """HF labels, not shifted. Sequence 0: prompt masked. Last: everything masked. Others: mixed, first token often kept."""
    out, at = [], 0
    for k, n in enumerate(lens):
        s = ids[at:at + n].clone()
        if k == len(lens) - 1:
            s[:] = -100
        elif k == 0:
            s[: n // 2] = -100
        elif k == 2:
            s[1:n // 3] = -100                      # first token kept, then a hole
        elif n > 1:
            s[torch.rand(n, generator=gen) < 0.3] = -100
            s[0], s[n - 1] = ids[at], ids[at + n - 1]
        out.append(s)
        at += n
    return torch.cat(out)


def golden(name, adapter, out, lens, gen):
    folder = GOLDEN / name
    base = load_base(folder)
    vocab = base.config.vocab_size
    n = sum(lens)
    ids = torch.randint(0, vocab, (n,), generator=gen)
    labels = make_labels(ids, lens, gen)
    cu = torch.tensor([0] + torch.tensor(lens).cumsum(0).tolist())
    with torch.no_grad():
        base_logits = torch.cat([base(ids[a:b][None], use_cache=False).logits[0] for a, b in zip(cu, cu[1:])])
    pm = PeftModel.from_pretrained(base, str(folder / adapter), is_trainable=True).train()  # dropout is 0 everywhere
    logits = torch.cat([pm(ids[a:b][None], use_cache=False).logits[0] for a, b in zip(cu, cu[1:])])
    total, count = 0.0, 0
    for a, b in zip(cu.tolist(), cu[1:].tolist()):
        total = total + F.cross_entropy(logits[a:b - 1], labels[a + 1:b], ignore_index=-100, reduction="sum")
        count += int((labels[a + 1:b] != -100).sum())
    loss = total / count
    loss.backward()
    names = load_file(str(folder / adapter / "adapter_model.safetensors")).keys()
    params = {k.replace(".default.", "."): p for k, p in pm.named_parameters() if p.requires_grad}
    assert set(names) == set(params), set(names) ^ set(params)
    t = {
        "ids": ids.to(torch.int32), "cu_seqlens": cu.to(torch.int32), "labels": labels.to(torch.int32),
        "logits": logits.detach(), "base_logits": base_logits, "loss": loss.detach().reshape(1),
    }
    for k, p in params.items():
        assert p.grad.dtype == torch.float32 and p.grad.abs().max() > 0, k
        t["grad." + k] = p.grad
    save_file({k: v.contiguous() for k, v in t.items()}, str(folder / out))
    g = torch.stack([p.grad.abs().max() for p in params.values()])
    print(f"{name}/{out}: N={n} targets={count} loss={loss.item():.6f} logit std={logits.std():.3f} "
          f"adapter moves logits by {(logits - base_logits).abs().max():.3f} max|grad| {g.min():.2e}..{g.max():.2e}")


def models():
    for name in sys.argv[2:] or MODELS:
        m = MODELS[name]
        folder = GOLDEN / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        gen = torch.Generator().manual_seed(m["seed"])
        cfg = m["config"]()
        cfg.bos_token_id, cfg.eos_token_id, cfg.pad_token_id = 1, 2, 0
        model = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32)
        randomise(model, gen)
        model.to(m.get("dtype", torch.float32)).save_pretrained(
            str(folder), **({"max_shard_size": m["shard"]} if "shard" in m else {}))
        if "edit" in m:
            c = json.loads((folder / "config.json").read_text())
            before = load_base(folder).model.rotary_emb.inv_freq.clone()
            m["edit"](c)
            (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
            assert torch.equal(before, load_base(folder).model.rotary_emb.inv_freq)
        random_adapter(load_base(folder), m["lora"], gen, folder / "adapter")
        golden(name, "adapter", "golden.safetensors", m["lens"], gen)
        if "extra" in m:
            sfx = m["extra"]["suffix"]
            random_adapter(load_base(folder), m["extra"]["lora"], gen, folder / ("adapter" + sfx))
            golden(name, "adapter" + sfx, f"golden{sfx}.safetensors", m["extra"]["lens"], gen)


# -------------------------------------------------------------------------------------------------------- adapters

ADAPTERS = {
    # what the base is without the initial adapter decides: fp32 arithmetic from bf16 weights (mistral) and from fp32
    "pissa": dict(model="mistral", lora=dict(r=5, lora_alpha=8, target_modules=ALL7), init="pissa"),
    "olora": dict(model="mistral", lora=dict(r=3, lora_alpha=12, use_rslora=True, target_modules=ALL7), init="olora"),
    "pissa_pattern": dict(model="qwen3", init="pissa", lora=dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 32})),
    "patterns": dict(model="qwen3", dtype=torch.float16, lora=dict(
        r=4, lora_alpha=8, use_rslora=True, target_modules=r".*\.(self_attn|mlp)\.(?:[qkv]|up|down)_proj$",
        exclude_modules=["1.self_attn.v_proj"], rank_pattern={r"layers\.1\..*q_proj": 7,
                                                              "^model.layers.0.mlp.up_proj": 2, "mlp.up_proj": 9},
        alpha_pattern={"v_proj|down_proj": 3.5})),
    "number": dict(model="qwen3", lora=dict(
        r=2, lora_alpha=3, target_modules=["k_proj", "gate_proj", "model.layers.0.mlp.down_proj"],
            layers_to_transform=1,
        layers_pattern="layers")),
    "all_linear": dict(model="llama", dtype=torch.bfloat16, named=True,
                       lora=dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "exclude": dict(model="llama", lora=dict(r=2, lora_alpha=4, target_modules=ALL7,
                                             exclude_modules=r"model\.layers\.0\..*|.*\.o_proj")),
}


@contextlib.contextmanager
def exact_svd():
    """PiSSA's SVD in float64: between two nearly equal singular values PEFT's own, in float32, is off by 4e-5."""
    svd = torch.linalg.svd
    torch.linalg.svd = lambda w, **k: tuple(x.float() for x in svd(w.double(), **k))
    yield
    torch.linalg.svd = svd


def adapters():
    ids = torch.tensor([3, 17, 60, 95, 0, 41, 8, 77, 23])
    out = {"ids": ids.to(torch.int32)}
    for seed, (name, a) in enumerate(ADAPTERS.items()):
        gen = torch.Generator().manual_seed(900 + seed)
        folder = GOLDEN / a["model"] / ("adapter_" + name)
        random_adapter(load_base(GOLDEN / a["model"]), a["lora"], gen, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        if "init" in a:
            config["init_lora_weights"] = a["init"]
        config["base_model_name_or_path"] = str(GOLDEN / a["model"])
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        file = folder / "adapter_model.safetensors"
        tensors = {k: v.to(a.get("dtype", torch.float32)) for k, v in load_file(str(file)).items()}
        save_file(tensors, str(file), metadata={"format": "pt"})
        base = load_base(GOLDEN / a["model"])
        with torch.no_grad(), exact_svd():
            before = base(ids[None], use_cache=False).logits[0]
            after = PeftModel.from_pretrained(base, str(folder)).eval()(ids[None], use_cache=False).logits[0]
        out[name] = after.contiguous()
        if a.get("named"):  # as some tools write them: with the adapter's name in the key
            save_file({k.replace(".weight", ".default.weight"): v for k, v in tensors.items()}, str(file),
                      metadata={"format": "pt"})
        print(f"{name}: {len(tensors)} tensors, moves the logits by {(after - before).abs().max():.3f}")
    save_file(out, str(GOLDEN / "adapters.safetensors"))


# -------------------------------------------------------------------------------------------------------- randperm

def randperm():
    out = []
    for seed in (0, 1, 42, 43, 1234, 2**31 + 5, 2**32 + 7):
        for n in (1, 2, 5, 10, 600):
            p = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
            out.append({"seed": seed, "n": n, "perm": p[:20]})
    (GOLDEN / "randperm.json").write_text("[\n" + ",\n".join(json.dumps(o) for o in out) + "\n]\n")
    print("randperm.json:", len(out), "cases")


# ------------------------------------------------------------------------------------------------------------- trl

BASE_RUN = dict(
    learning_rate=5e-3, lr_scheduler_type="linear", warmup_steps=0, num_train_epochs=4, per_device_train_batch_size=2,
    gradient_accumulation_steps=3, weight_decay=0.0, max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.999,
    adam_epsilon=1e-8, optim="adamw_torch", seed=42, max_length=1024, logging_steps=1, logging_strategy="steps",
    eval_strategy="no", save_strategy="no", bf16=False, fp16=False, use_cpu=True, gradient_checkpointing=False,
    packing=False, padding_free=False, report_to="none", dataloader_drop_last=False, dataset_num_proc=None,
    dataloader_pin_memory=False, disable_tqdm=True, loss_type="nll", average_tokens_across_devices=True,
)

# n examples; "full" = that share of the examples has labels == input_ids (first token not masked either)
RUNS = {
    # 43 examples: 22 micro-batches (the last of 1 example), 8 steps an epoch (the last of 1 micro-batch)
    "trl_linear": dict(model="qwen3", n=43, full=0.0, data_seed=1, n_eval=11, args=dict(
        warmup_steps=5, weight_decay=0.01, max_grad_norm=4.2, eval_strategy="steps", eval_steps=5,
        per_device_eval_batch_size=3)),
    # max_length cuts some examples and drops those left without a label; fractional epochs; warmup as a ratio
    "trl_cosine": dict(model="qwen3", n=47, full=0.0, data_seed=2, args=dict(
        lr_scheduler_type="cosine", warmup_steps=0.1, per_device_train_batch_size=3, gradient_accumulation_steps=2,
        max_length=24, num_train_epochs=3.5, seed=7, learning_rate=8e-3, max_grad_norm=1.0)),
    # labels == input_ids in half of the examples: position 0 must not be counted
    "trl_constant": dict(model="llama", n=42, full=0.5, data_seed=3, args=dict(
        lr_scheduler_type="constant", per_device_train_batch_size=4, gradient_accumulation_steps=1, num_train_epochs=3,
        seed=1234, learning_rate=3e-3, max_grad_norm=0.0)),
    "trl_constant_with_warmup": dict(model="qwen2", n=30, full=0.2, data_seed=4, args=dict(
        lr_scheduler_type="constant_with_warmup", warmup_steps=3, per_device_train_batch_size=1,
        gradient_accumulation_steps=4, num_train_epochs=4, weight_decay=0.1, adam_beta2=0.99, adam_epsilon=1e-6,
        learning_rate=6e-3, max_grad_norm=4.0)),
    # logging_steps 4 and max_steps 26: what a record averages over, and what becomes of the last 2 steps
    "trl_logging": dict(model="qwen3", n=43, full=0.0, data_seed=1, args=dict(
        warmup_steps=2, max_steps=26, logging_steps=4, max_grad_norm=4.5, seed=3)),
    # new adapters that begin at a part of the base, of fp32 and of bf16 weights
    "trl_pissa": dict(model="qwen3", n=30, full=0.2, data_seed=5, init="pissa", args=dict(
        num_train_epochs=5, learning_rate=1e-3, warmup_steps=2, weight_decay=0.1),
        lora=dict(r=5, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"])),
    "trl_olora": dict(model="mistral", n=30, full=0.2, data_seed=6, init="olora", args=dict(
        num_train_epochs=5, learning_rate=1e-3),
        lora=dict(r=3, lora_alpha=12, use_rslora=True, target_modules=["k_proj", "up_proj"])),
    # moments in 8 bits; v_proj's tensors and q_proj's A in layer 1 are below 4096 elements and keep 32
    "trl_adamw_8bit": dict(model="qwen3", n=30, full=0.2, data_seed=8, start=dict(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], rank_pattern={"layers.0.self_attn.q_proj": 128}),
        args=dict(num_train_epochs=5, learning_rate=2e-3, weight_decay=0.1, warmup_steps=2, optim="adamw_bnb_8bit")),
    # B learns 8 times as fast as A
    "trl_loraplus": dict(model="qwen2", n=30, full=0.2, data_seed=7, loraplus_lr_ratio=8, args=dict(
        num_train_epochs=5, learning_rate=1e-3, weight_decay=0.1, lr_scheduler_type="cosine")),
}


def make_data(n, vocab, full, seed, taken=()):
    """Sequences with structure to learn: x[i+1] = (a*x[i] + b) mod vocab with noise, prompts of random length masked."""
    rng = random.Random(seed)
    rows, seen = [], set(taken)
    while len(rows) < n:
        length = rng.randint(3, 40)
        x = [rng.randrange(3, vocab)]
        while len(x) < length:
            x.append((5 * x[-1] + 7) % vocab if rng.random() < 0.8 else rng.randrange(3, vocab))
        prompt = 0 if rng.random() < full else rng.randint(1, length - 1)
        labels = [-100] * prompt + x[prompt:]
        if prompt and length - prompt > 6 and rng.random() < 0.3:     # a second masked turn
            k = rng.randrange(prompt + 1, length - 2)
            labels[k] = labels[k + 1] = -100
        if tuple(x) in seen:
            continue
        seen.add(tuple(x))
        rows.append({"input_ids": x, "labels": labels})
    return rows


def tiny_tokenizer(vocab):
    """The trainer wants a tokenizer for its pad token; no text is tokenised."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{i}": i for i in range(3, vocab)}}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>",
                                   bos_token="<s>", eos_token="</s>")


@contextlib.contextmanager
def nearest_codes():
    """bitsandbytes' CPU looks its codes up in a table of 65536 places; those of its other backends are the nearest."""
    from bitsandbytes.backends.cpu import ops

    quantize = torch.ops.bitsandbytes.quantize_blockwise.default
    portable = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)

    def nearest(x, code, absmax, codes, block):
        q, largest = quantize.redispatch(portable, x, code, block)
        codes.copy_(q)
        absmax.copy_(largest)

    table = ops._quant_blockwise_fp32_direct
    ops._quant_blockwise_fp32_direct = nearest
    yield
    ops._quant_blockwise_fp32_direct = table


def adamw_8bit():
    """Steps of bitsandbytes' AdamW8bit: gradients of every size, a last block of 88, one of zeros, one that begins so."""
    import bitsandbytes

    gen, n, steps, t = torch.Generator().manual_seed(77), 856, 12, {}
    p = torch.nn.Parameter(torch.randn(n, generator=gen))
    t["param"] = p.detach().clone()
    grad = torch.randn(steps, n, generator=gen) * 10 ** (-6 * torch.rand(n, generator=gen)) * 0.1
    grad[:, 256:512] = 0
    grad[:4, 512:768] = 0
    optimizer = bitsandbytes.optim.AdamW8bit([p], lr=1e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1,
                                             min_8bit_size=1)
    after = []
    with nearest_codes():
        for g in grad:
            p.grad = 0.5 * g
            optimizer.step()
            after.append(p.detach().clone())
    state = optimizer.state[p]
    assert state["state1"].dtype == torch.uint8
    t |= {"grad": grad, "after": torch.stack(after), "m": state["state1"].int(), "v": state["state2"].int(),
          "m_absmax": state["absmax1"], "v_absmax": state["absmax2"],
          "m_map": optimizer.name2qmap["dynamic"], "v_map": optimizer.name2qmap["udynamic"]}
    save_file({k: v.contiguous() for k, v in t.items()}, str(GOLDEN / "adamw_8bit.safetensors"))
    print(f"adamw_8bit: {n} parameters moved by {(after[-1] - t['param']).abs().max():.3f} in {steps} steps")


def trl_run(name, run):
    import datasets
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    out = GOLDEN / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    folder = GOLDEN / run["model"]
    base = load_base(folder)
    vocab = base.config.vocab_size
    rows = make_data(run["n"], vocab, run["full"], run["data_seed"])
    dump = lambda rs: "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in rs)  # noqa: E731
    (out / "data.jsonl").write_text(dump(rows))
    eval_rows = None
    if "n_eval" in run:
        eval_rows = make_data(run["n_eval"], vocab, run["full"], run["data_seed"] + 100, [tuple(r["input_ids"]) for r in rows])
        (out / "eval.jsonl").write_text(dump(eval_rows))

    opts = {**BASE_RUN, **run["args"]}
    start = folder / "adapter"
    if "start" in run:
        start = out / "start"
        random_adapter(load_base(folder), run["start"], torch.Generator().manual_seed(run["data_seed"]), start)
    if "init" in run:
        config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, init_lora_weights=run["init"], **run["lora"])
        with exact_svd():
            model = get_peft_model(base, config)
    else:
        model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["HF_DATASETS_CACHE"] = tmp
        optimizer = None
        if "loraplus_lr_ratio" in run:
            optimizer = create_loraplus_optimizer(
                model, torch.optim.AdamW, lr=opts["learning_rate"], loraplus_lr_ratio=run["loraplus_lr_ratio"],
                loraplus_weight_decay=opts["weight_decay"], betas=(opts["adam_beta1"], opts["adam_beta2"]),
                eps=opts["adam_epsilon"])
        trainer = SFTTrainer(
            model=model, args=SFTConfig(output_dir=tmp, **opts), processing_class=tiny_tokenizer(vocab),
            optimizers=(optimizer, None), train_dataset=datasets.Dataset.from_list(rows),
            eval_dataset=datasets.Dataset.from_list(eval_rows) if eval_rows else None)

        # which lines of data.jsonl the trainer kept, and what it cut them to
        limit = opts["max_length"]
        where = {tuple(r["input_ids"][:limit]): i for i, r in enumerate(rows)}
        assert len(where) == len(rows)
        kept = [where[tuple(r["input_ids"])] for r in trainer.train_dataset]
        assert kept == [i for i, r in enumerate(rows) if any(v != -100 for v in r["labels"][:limit])]
        for i, r in zip(kept, trainer.train_dataset):
            assert list(r["labels"]) == rows[i]["labels"][:limit]

        # what was fed to the model, in which order, and with which denominator
        steps, original = [], trainer.get_batch_samples

        def spy(epoch_iterator, num_batches, device):
            batches, items = original(epoch_iterator, num_batches, device)
            mbs = []
            for b in batches:
                n_tok = b["attention_mask"].sum(1).tolist()
                mbs.append([where[tuple(row[:n].tolist())] for row, n in zip(b["input_ids"], n_tok)])
            assert int(items) == sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
            steps.append({"num_items": int(items), "micro_batches": mbs})
            return batches, items

        trainer.get_batch_samples = spy
        with nearest_codes():
            trainer.train()
        trainer.save_state()
        shutil.copy(Path(tmp) / "trainer_state.json", out / "trainer_state.json")
        model.save_pretrained(str(out / "adapter"))
        (out / "adapter" / "README.md").unlink(missing_ok=True)

    total = trainer.state.max_steps
    log = [r for r in trainer.state.log_history if "train_runtime" not in r]
    log = [{k: v for k, v in r.items() if k not in ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")}
           for r in log]
    (out / "log.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in log) + "\n]\n")

    # Check the sampler rule: epoch e takes torch.randperm(kept, mt19937(seed + e)), in order, cut into micro-batches.
    per_epoch = -(-(-(-len(kept) // opts["per_device_train_batch_size"])) // opts["gradient_accumulation_steps"])
    epochs, at = [], 0
    while at < len(steps):
        seen = [i for s in steps[at:at + per_epoch] for mb in s["micro_batches"] for i in mb]
        e = len(epochs)
        perm = torch.randperm(len(kept), generator=torch.Generator().manual_seed(opts["seed"] + e)).tolist()
        assert seen == [kept[p] for p in perm][:len(seen)], (name, e)
        epochs.append({"epoch": e, "generator_seed": opts["seed"] + e, "perm_of_kept": perm, "lines": seen})
        at += per_epoch
    (out / "order.json").write_text(
        '{\n"kept": ' + json.dumps(kept) + ',\n"epochs": [\n' + ",\n".join(json.dumps(e) for e in epochs) +
        '\n],\n"steps": [\n' + ",\n".join(json.dumps({"step": k + 1, **s}) for k, s in enumerate(steps)) + "\n]\n}\n")

    summary = next(r for r in trainer.state.log_history if "train_loss" in r)
    summary = {k: v for k, v in summary.items() if k not in (
        "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")}
    pins = ["torch", "transformers", "peft", "trl", "accelerate", "datasets"]
    (out / "run.json").write_text(json.dumps({
        "model": str(folder), "data": "data.jsonl",
        **({"init_lora_weights": run["init"], "lora": run["lora"]} if "init" in run else
           {"init_adapter": str(start)}),
        **({"loraplus_lr_ratio": run["loraplus_lr_ratio"]} if "loraplus_lr_ratio" in run else {}),
        **({"eval_data": "eval.jsonl"} if eval_rows else {}),
        "args": opts, "total_steps": total, "steps_per_epoch": per_epoch,
        "resolved_warmup_steps": trainer.args.get_warmup_steps(total), "final_record": summary,
        "versions": {p: version(p).split("+")[0] for p in pins}}, indent=2) + "\n")
    assert len(steps) == total >= 24
    tr = [r for r in log if "loss" in r]
    clip = opts["max_grad_norm"]
    print(f"{name}: {total} steps, loss {tr[0]['loss']:.4f} -> {tr[-1]['loss']:.4f}, kept {len(kept)}/{len(rows)}, "
          f"{sum(r['grad_norm'] > clip > 0 for r in tr)}/{len(tr)} clipped, warmup {trainer.args.get_warmup_steps(total)}")


def trl():
    import logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in sys.argv[2:] or RUNS:
        trl_run(name, RUNS[name])


def trl_evaluation():
    """SFTTrainer.evaluate() with and without packing: TRL packs the evaluation set too, and batches are of slots."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    folder, lines = GOLDEN / "qwen3", []
    rows = [json.loads(x) for x in (GOLDEN / "trl_linear" / "data.jsonl").read_text().splitlines()]
    for packing, batch in ((False, 4), (False, 5), (True, 1), (True, 2), (True, 3)):
        model = PeftModel.from_pretrained(load_base(folder), str(folder / "adapter"), is_trainable=True)
        with tempfile.TemporaryDirectory() as tmp:
            opts = {**BASE_RUN, "max_length": 64, "packing": packing, "per_device_eval_batch_size": batch}
            data = datasets.Dataset.from_list(rows)
            trainer = SFTTrainer(model=model, args=SFTConfig(output_dir=tmp, **opts), train_dataset=data,
                                 eval_dataset=data, processing_class=tiny_tokenizer(100))
            got = trainer.evaluate()
        keys = ("eval_loss", "eval_mean_token_accuracy", "eval_entropy")
        lines.append({"packing": packing, "batch": batch, **{k: got[k] for k in keys}})
    (GOLDEN / "trl_evaluation.json").write_text("[\n" + ",\n".join(json.dumps(x) for x in lines) + "\n]\n")
    print((GOLDEN / "trl_evaluation.json").read_text())


# ------------------------------------------------------------------------------------------------------ generation

NEW_TOKENS = 112


def labels():
    """Rows as SFTTrainer prepares them with data/base: masks, pairs whose tokens merge at the border."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    base = "data/base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rng = random.Random(7)
    ends = ["", " ", "  ", "\n", " \n", "\t", "12", "th", "it'", "e", "!", "\u00e9", "\u4e00", ".\n\n"]
    starts = ["", " ", "\n", "\n\n \u00e9", " yes", "ere", "s fine", "345", "\u0301x", "?!", "\t", "  b", "\u4e8c"]
    pairs = [{"prompt": rng.choice(["", "\t A", "What", "x y", "The price"]) + rng.choice(ends),
              "completion": rng.choice(starts) + rng.choice(["", "ok", " done.", "\n"])} for _ in range(100)]
    ids = lambda n: [rng.randrange(3, 300) for _ in range(n)]           # noqa: E731
    bits = lambda n: [rng.randrange(2) for _ in range(n)]               # noqa: E731
    masked = lambda *names: [{"input_ids": ids(9), **{k: bits(9) for k in names}} for _ in range(3)]      # noqa: E731
    both = "assistant_masks", "completion_mask"
    groups = [(pairs, None), (masked("assistant_masks"), None), (masked("completion_mask"), None),
              (masked("completion_mask"), True), (masked(*both), None), (masked(*both), True),
              ([r | {"labels": [-100] * 4 + r["input_ids"][4:]} for r in masked(*both)], True)]
    lines = []
    for rows, only in groups:
        with tempfile.TemporaryDirectory() as tmp:
            os.environ["HF_DATASETS_CACHE"] = tmp
            config = SFTConfig(output_dir=tmp, completion_only_loss=only, report_to="none", use_cpu=True, bf16=False)
            trainer = SFTTrainer(
                model=model, args=config, processing_class=tokenizer, train_dataset=datasets.Dataset.from_list(rows))
            kept = [(list(r["input_ids"]), list(r["labels"])) for r in trainer.train_dataset]
        assert len(kept) == len(rows)       # none without a label, which the trainer would drop
        for row, (tokens, learned) in zip(rows, kept):
            line = {"row": row, "completion_only": only, "input_ids": tokens, "labels": learned}
            lines.append(json.dumps(line, separators=(",", ":")))
    (GOLDEN / "trl_labels.jsonl").write_text("\n".join(lines) + "\n")


def greedy(model, prompt):
    """generate()'s tokens, and by how much the chosen one ever beat the next."""
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0,
                         output_scores=True, return_dict_in_generate=True)
    margin = min((s.topk(2).values[0, 0] - s.topk(2).values[0, 1]).item() for s in out.scores)
    return out.sequences[0, len(prompt):].tolist(), margin


def distribution(logits, seen, o):
    """Probabilities of the next token as GenerationMixin._sample computes them."""
    from transformers.generation.logits_process import (MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
    ids, z = torch.tensor([seen]), torch.tensor([logits])
    steps = []
    if o["repetition_penalty"] != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(o["repetition_penalty"]))
    if o["temperature"] != 1:
        steps.append(TemperatureLogitsWarper(o["temperature"]))
    if o["top_k"]:
        steps.append(TopKLogitsWarper(o["top_k"]))
    if o["top_p"] < 1:
        steps.append(TopPLogitsWarper(o["top_p"]))
    if o["min_p"]:
        steps.append(MinPLogitsWarper(o["min_p"]))
    for step in steps:
        z = step(ids, z)
    return torch.softmax(z, dim=-1)[0].tolist()


def generation():
    runs, rng = [], random.Random(9)
    for name in MODELS:
        draw = rng if name not in ("smollm3", "granite") else random.Random(name)     # what was drawn before stays
        for adapter in [None, "adapter"] + (["adapter_layers"] if "extra" in MODELS[name] else []):
            model = load_base(GOLDEN / name)
            if adapter:
                model = PeftModel.from_pretrained(model, str(GOLDEN / name / adapter)).eval()
            kept = 0
            while kept < 3:                 # prompts whose greedy path is never close to a tie: rounding must not decide
                prompt = [draw.randrange(3, 90) for _ in range((1, 9, 17)[kept])]
                tokens, margin = greedy(model, prompt)
                if margin < 2e-3 or len(set(tokens)) < 5:
                    continue
                runs.append({"model": name, "adapter": adapter, "prompt": prompt, "tokens": tokens, "margin": round(margin, 6)})
                kept += 1
            print(name, adapter, [r["margin"] for r in runs[-3:]])
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    cases = [{}, {"temperature": 0.6}, {"temperature": 1.7}, {"top_k": 5}, {"top_k": 1}, {"top_p": 0.8}, {"top_p": 0.3}, {"min_p": 0.1}, {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8},
             {"temperature": 0.7, "top_k": 20, "top_p": 0.8}, {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2}]
    samples = []
    for k, case in enumerate(cases):
        logits = [round(rng.gauss(0, 2), 3) for _ in range(32)]
        seen = [rng.randrange(32) for _ in range(6)]
        o = plain | case
        samples.append({"options": o, "logits": logits, "seen": seen, "p": [round(p, 9) for p in distribution(logits, seen, o)]})
    text = json.dumps({"greedy": runs, "sampling": samples}, separators=(",", ":"))
    (GOLDEN / "generate.json").write_text(text.replace('},{"model"', '},\n{"model"').replace('},{"options"', '},\n{"options"') + "\n")


# -------------------------------------------------------------------------------------------------------- few-shot

def few_shot():
    """The loss of answers behind solved examples: the shots stand in the prompt, only the row's own answers count."""
    from transformers import AutoTokenizer

    folder, out, lines = "data/base", GOLDEN / "few_shot", []
    tok, model = AutoTokenizer.from_pretrained(folder), load_base(folder)
    read = lambda path: [json.loads(x) for x in Path(path).read_text().splitlines()]  # noqa: E731

    def measure(texts):
        """texts: a row's (prompt, answer, prompt, answer ...); loss on the answers."""
        losses = []
        for parts in texts:
            coded = tok("".join(parts), return_offsets_mapping=True)
            ids, span = torch.tensor(coded["input_ids"]), coded["offset_mapping"]
            labels, at = torch.full_like(ids, -100), 0
            for k, part in enumerate(parts):
                for i, (a, b) in enumerate(span):
                    if k % 2 and a < at + len(part) and b > at:
                        labels[i] = ids[i]
                at += len(part)
            with torch.no_grad():
                z = model(ids[None]).logits[0]
            losses.append(F.cross_entropy(z[:-1], labels[1:], ignore_index=-100, reduction="none")[labels[1:] != -100])
        return torch.cat(losses).mean().item(), sum(x.mean().exp().item() for x in losses) / len(losses)

    rows, shots = read("data/hotel/test.jsonl")[:4], read("data/hotel/train.jsonl")
    for k in (0, 1, 3):
        texts, head = [], "<|im_start|>assistant\n"
        before = [m for s in shots[:k] for m in s["messages"] if m["role"] != "system"]
        for r in rows:
            whole = tok.apply_chat_template(before + r["messages"], tokenize=False)
            start = len(tok.apply_chat_template(before, tokenize=False)) if before else 0
            parts, rest = [], whole[start:]
            while head in rest:
                a = rest.index(head) + len(head)
                b = rest.index("<|im_end|>", a) + len("<|im_end|>")
                parts, rest = parts + [rest[:a], rest[a:b]], rest[b:]
            parts[0] = whole[:start] + parts[0]
            texts.append(parts + [rest])
        lines.append(("chat", k, *measure(texts)))
    rows, shots = read(out / "plain.jsonl"), read(out / "plain_shots.jsonl")

    def pair(r):
        prompt = r["prompt"] if "prompt" in r else r["instruction"] + "\n" + r["input"]
        return "Q: " + prompt + "\nA: ", r.get("completion", r.get("output"))

    for k in (0, 1, 2):
        before = "".join("".join(pair(s)) + "\n\n" for s in shots[:k])
        texts = [(before + pair(r)[0], pair(r)[1] + tok.eos_token) for r in rows]
        lines.append(("plain", k, *measure(texts)))
    (out / "expected.txt").write_text("".join("%s %d %.7f %.5f\n" % line for line in lines))
    print((out / "expected.txt").read_text())


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    makers = (models, adapters, trl, adamw_8bit, labels, randperm, generation, few_shot, trl_evaluation)
    if what not in ("all", *(f.__name__ for f in makers)):
        sys.exit(__doc__)
    for f in makers if what == "all" else (globals()[what],):
        f()

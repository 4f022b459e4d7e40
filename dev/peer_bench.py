"""peer_bench.py - the same LoRA step with torch + transformers + peft and with train_lora, in turn, on this machine: tokens/s, peak memory, time from process start to the first finished step.

    make bench-peer            # or: python3 dev/peer_bench.py [--config dev/configs/tinyllama-4-layers.json] [--dtype F32] [--batch 4] [--length 256] [--steps 6] [--runs 3]

Both sides: fp32, the same folder of random weights, the same token ids, all tokens labelled, rank 16 on all seven projections, AdamW, the same number of threads.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time

def peer(model, rows, batch, steps):
    start = float(os.environ["BENCH_START"])
    import torch, transformers, peft, resource
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.utils.logging.set_verbosity_error()
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    net = peft.get_peft_model(base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    data = [json.loads(line)["input_ids"] for line in open(rows)]
    speeds, first = [], None
    for step in range(steps):
        began = time.time()
        ids = torch.tensor(data[step * batch:(step + 1) * batch])
        net(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        first = first or time.time() - start
        speeds.append(ids.numel() / (time.time() - began))
    print(json.dumps({"speed": statistics.median(speeds[1:]), "first": first, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))

def ours(model, rows, batch, steps, out):
    start = time.time()
    process = subprocess.Popen(["./train_lora", "--model", model, "--data", rows, "--output", out, "--per-device-train-batch-size", str(batch), "--max-steps", str(steps), "--logging-steps", "1", "--lora-r", "16", "--lora-alpha", "32",
                                "--lora-dropout", "0", "--no-shuffle", "--learning-rate", "1e-4"], stdout=subprocess.PIPE, text=True)
    first = None
    for line in process.stdout:
        if line.startswith("step") and first is None:
            first = time.time() - start
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    log = [json.loads(line) for line in open(os.path.join(out, "log.jsonl"))]
    return {"speed": statistics.median([r["tokens_per_second"] for r in log if "loss" in r][1:]), "first": first, "memory": usage.ru_maxrss / 1024}

def main():
    p = argparse.ArgumentParser()
    p.add_argument("--config", default="dev/configs/tinyllama-4-layers.json")
    p.add_argument("--dtype", default="F32")
    for name, value in (("batch", 4), ("length", 256), ("steps", 6), ("runs", 3), ("threads", os.cpu_count())):
        p.add_argument("--" + name, type=int, default=value)
    a = p.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(a.threads)
    with tempfile.TemporaryDirectory() as folder:
        model, rows = os.path.join(folder, "model"), os.path.join(folder, "rows.jsonl")
        subprocess.run(["build/make_random_model", a.config, model, a.dtype], check=True)
        vocab = json.load(open(a.config))["vocab_size"]
        with open(rows, "w") as f:
            for r in range(a.batch * a.steps):
                ids = [(r * 7919 + i * 104729 + i * i) % vocab for i in range(a.length)]
                f.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
        results = {"train_lora": [], "torch": []}
        for _ in range(a.runs):
            results["train_lora"].append(ours(model, rows, a.batch, a.steps, os.path.join(folder, "out")))
            environment = dict(os.environ, BENCH_START=str(time.time()))
            line = subprocess.run([sys.executable, __file__, "--peer", model, rows, str(a.batch), str(a.steps)], env=environment, check=True, capture_output=True, text=True).stdout
            results["torch"].append(json.loads(line.strip().splitlines()[-1]))
        median = {k: {key: statistics.median(r[key] for r in v) for key in v[0]} for k, v in results.items()}
        print(f"{os.path.basename(a.config)} in {a.dtype}, {a.batch} x {a.length} tokens, {a.threads} threads, medians of {a.runs}")
        for k, m in median.items():
            print(f"  {k:12s} {m['speed']:8.1f} tokens/s   peak memory {m['memory']:8.0f} MiB   first step after {m['first']:6.2f} s")
        m, t = median["train_lora"], median["torch"]
        print(f"  ratio        {m['speed'] / t['speed']:8.2f} x          {m['memory'] / t['memory']:8.2f} x                 {t['first'] / m['first']:6.1f} x sooner")

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--peer":
        peer(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()

"""peer_bench.py - the same LoRA step with torch + transformers + peft and with train_lora, in turn, on this machine: tokens/s, peak memory, time from process start to the first finished step.

    make bench-peer            # or: python3 dev/peer_bench.py [--config dev/configs/tinyllama-4-layers.json] [--dtype F32] [--batch 4] [--length 256] [--steps 6] [--runs 3]
    python3 dev/peer_bench.py --device cuda --config dev/configs/qwen3-1.7b.json --dtype BF16 --batch 8 --length 1024 --steps 20       # with the CUDA build of ./train_lora

Both sides: the same folder of random weights, the same token ids, all tokens labelled, rank 16 on all seven projections, AdamW, in turn. CPU: fp32, the same number of threads, peak resident memory.
CUDA: bf16, torch's scaled_dot_product_attention, no gradient checkpointing; memory is what nvidia-smi shows above the idle card, looked at five times a second.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, threading, time

def peer(model, rows, batch, steps):
    start = float(os.environ["BENCH_START"])
    import torch, transformers, peft, resource
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.utils.logging.set_verbosity_error()
    device = os.environ["BENCH_DEVICE"]
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if device == "cuda" else torch.float32, attn_implementation="sdpa").to(device)
    net = peft.get_peft_model(base, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4)
    data = [json.loads(line)["input_ids"] for line in open(rows)]
    speeds, first = [], None
    for step in range(steps):
        began = time.time()
        ids = torch.tensor(data[step * batch:(step + 1) * batch], device=device)
        net(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        first = first or time.time() - start
        speeds.append(ids.numel() / (time.time() - began))
    print(json.dumps({"speed": statistics.median(speeds[1:]), "first": first, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))

class CardMemory:
    """The most memory that the card showed in use while this was open, above what it showed before, in MiB."""
    def look(self):
        return float(subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout.split()[0])
    def __enter__(self):
        self.idle, self.most, self.open = self.look(), 0, True
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while self.open:
            self.most = max(self.most, self.look() - self.idle)
            time.sleep(0.2)
    def __exit__(self, *_):
        self.open = False
        self.thread.join()

def measured(run):
    """A run's result; on a GPU with the card's memory in the place of the process's."""
    if os.environ["BENCH_DEVICE"] == "cpu":
        return run()
    with CardMemory() as card:
        result = run()
    return dict(result, memory=card.most)

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
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    for name, value in (("batch", 4), ("length", 256), ("steps", 6), ("runs", 3), ("threads", os.cpu_count())):
        p.add_argument("--" + name, type=int, default=value)
    a = p.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(a.threads), BENCH_DEVICE=a.device)
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
            results["train_lora"].append(measured(lambda: ours(model, rows, a.batch, a.steps, os.path.join(folder, "out"))))
            def torch_run():
                environment = dict(os.environ, BENCH_START=str(time.time()))
                line = subprocess.run([sys.executable, __file__, "--peer", model, rows, str(a.batch), str(a.steps)], env=environment, check=True, capture_output=True, text=True).stdout
                return json.loads(line.strip().splitlines()[-1])
            results["torch"].append(measured(torch_run))
        median = {k: {key: statistics.median(r[key] for r in v) for key in v[0]} for k, v in results.items()}
        print(f"{os.path.basename(a.config)} in {a.dtype}, {a.batch} x {a.length} tokens, {a.device}, {a.threads} threads, medians of {a.runs}")
        for k, m in median.items():
            print(f"  {k:12s} {m['speed']:8.1f} tokens/s   peak memory {m['memory']:8.0f} MiB   first step after {m['first']:6.2f} s")
        m, t = median["train_lora"], median["torch"]
        print(f"  ratio        {m['speed'] / t['speed']:8.2f} x          {m['memory'] / t['memory']:8.2f} x                 {t['first'] / m['first']:6.1f} x sooner")

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--peer":
        peer(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()

"""make_base_model.py - trains the embedded base model data/base: a byte-level BPE of 2,048 tokens and a Qwen3-architecture model of about a million parameters, on make_data.py's pretraining text.

    pip install -r dev/requirements.txt && python3 dev/make_base_model.py [steps]        # about 10 minutes on 2 cores

Written by transformers' save_pretrained, so that data/base is a Hugging Face folder like any other.
"""
import os, sys, json, random
import torch
from tokenizers import Tokenizer, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_data

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "base")
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# ChatML, the form all Qwen models share, without their tools and thinking.
CHATML = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


# Everyday English beyond the dialogues, so that the vocabulary does not end with their few hundred words.
STEMS = """accept act add admit agree allow appear apply argue arrive ask attend avoid bake balance bath beat become begin believe belong boil borrow bottle break breathe bring build burn buy call camp care carry
catch cause celebrate chance change charge cheer choose claim clean clear climb collect comfort compare complain complete consider contain continue control cook copy correct count cover create cross cry damage dance
deal decide deliver demand depend describe design develop differ direct discover discuss divide doubt dream dress drink drive earn eat educate employ encourage end enjoy enter escape exist expect explain express fail
farm fashion fasten favour fear feed feel fight fill find finish fish fit fix float flow fold follow forget form freeze friend gather govern grow guard guess guide hammer handle happen hate heal hear help hide hold hope
hunt hurry imagine improve include increase influence inform insist interest introduce invent invite join judge jump keep kick kiss knock know label last laugh lead learn leave lend let lie lift like limit listen live
load lock look lose love manage mark matter mean measure meet melt mend mention mix move name need notice number obey object observe offer open operate order own pack paint pass pay perform permit photograph plan plant
play please point polish possess practise praise prefer prepare present press pretend prevent print produce promise protect prove provide pull punish push question reach read realise receive recognise reduce refuse
regret remain remember remind repair repeat replace reply report request rescue respect rest return ride rise roll rule run sail save say search season see seem select sell send separate serve settle shape share shine
shout show shut sing sit sleep smile smoke sort sound speak spend stand start state stay steal step stop study succeed suffer suggest supply support suppose surprise swim switch take talk taste teach tell thank think
throw touch trade train travel treat trust try turn understand use value visit wait walk want warn wash watch water wear weigh welcome win wish wonder work worry write yell""".split()
WORDS = [stem + ending for stem in STEMS for ending in ("", "s", "ed", "ing", "er", "able", "ment", "ly", "ness", "ful", "tion", "ive")]


def make_tokenizer(texts):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    t.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML, model_max_length=1024, clean_up_tokenization_spaces=False)


def main():
    torch.manual_seed(1)
    torch.set_num_threads(2)
    dialogues = make_data.pretraining(40000, WORDS)
    words = " ".join(make_data.FILL + make_data.NOUN)
    tokenizer = make_tokenizer([m["content"] for d in dialogues[:6000] for m in d] + [words, " ".join(WORDS)] + ["user", "assistant", "system"] * 50)
    ids = []
    for d in dialogues:
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in d)
        ids.append(tokenizer(text)["input_ids"])
    held, ids = ids[:200], ids[200:]
    config = Qwen3Config(vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=1024,
                         tie_word_embeddings=True, rope_theta=10000.0, rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = Qwen3ForCausalLM(config).float()
    print("vocabulary", len(tokenizer), "parameters", sum(p.numel() for p in model.parameters()), "tokens", sum(map(len, ids)))
    steps, batch = int(sys.argv[1]) if len(sys.argv) > 1 else 1500, 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    rng = random.Random(3)

    def pad(rows):
        n = max(map(len, rows))
        x = torch.tensor([r + [tokenizer.pad_token_id] * (n - len(r)) for r in rows])
        y = torch.tensor([r + [-100] * (n - len(r)) for r in rows])
        return x, y, (y != -100).long()

    for step in range(steps):
        x, y, mask = pad(rng.sample(ids, batch))
        loss = model(input_ids=x, labels=y, attention_mask=mask).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(); schedule.step(); optimizer.zero_grad()
        if step % 100 == 99:
            with torch.no_grad():
                x, y, mask = pad(held)
                print("step", step + 1, "train", round(loss.item(), 4), "held out", round(model(input_ids=x, labels=y, attention_mask=mask).loss.item(), 4), flush=True)
    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(OUT)
    tokenizer.save_pretrained(OUT)


if __name__ == "__main__":
    main()

"""What transformers and TRL make of rows with a label: test/golden/labelled.jsonl, read by test/test_data.c.

    python dev/make_label_golden.py

Needs transformers, trl, datasets and the tokenizers in data/base and ../shared/tokenizers. A line is a row, how it is
read, the ids of its one or two sequences (tokenizer(text), apply_chat_template, RewardTrainer's own _prepare_dataset),
and where GenericForSequenceClassification pools them in a batch of all, padded on the right.
"""
import json
import types

import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl import RewardConfig, RewardTrainer

OUT = "test/golden/labelled.jsonl"
TEXTS = ["Where is the station?", "", " two  spaces\n", "Grüße, 世界!", "It is <|im_end|> here <|im_end|>",
         "a" * 40, "I was <|endoftext|>",
         "One of the oldest churches of the town, near the river, and it is open on Mondays."]
CHATS = [[("user", "Is it quiet there?")], [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello")],
         [("user", "Parking?"), ("assistant", "Yes."), ("user", "How much?")]]
PAIRS = [("Where is it? ", "By the church.", "No idea."), (None, "It is open.", "It is"), ("Hi ", "Hello", "Hello"),
         ("A long question about the whole of the old town and its river, please: ", "yes", "no " * 30)]


class Probe(GenericForSequenceClassification):
    """transformers' own pooling, over hidden states that are the positions."""

    def __init__(self, pad):
        self.config = PretrainedConfig(pad_token_id=pad, num_labels=1)
        self.model = lambda ids, **kwargs: BaseModelOutputWithPast(
            last_hidden_state=torch.arange(ids.shape[1]).expand(ids.shape)[..., None].float())
        self.score = lambda x: x


def pooled(sequences, pad):
    longest = max(map(len, sequences))
    ids = torch.tensor([s + [pad] * (longest - len(s)) for s in sequences])
    return Probe(pad).forward(input_ids=ids).logits[:, 0].long().tolist()


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def rows_of(tok, folder):
    chats = tok.chat_template is not None
    for limit in (1024, 6):
        for text in TEXTS:
            ids = tok(text, truncation=True, max_length=limit)["input_ids"]
            if ids:
                yield {"text": text, "label": 0}, limit, [ids]
        for turns in CHATS if chats else []:
            whole = tok.apply_chat_template(messages(turns), truncation=True, max_length=limit, return_dict=False)
            yield {"messages": messages(turns), "label": 0}, limit, [whole]
            if turns[-1][0] == "user":
                prompt = tok.apply_chat_template(messages(turns), truncation=True, max_length=limit, return_dict=False,
                                                 add_generation_prompt=True)
                yield {"prompt": messages(turns), "label": 0}, limit, [prompt]
    for limit in (1024, 32):
        for prompt, chosen, rejected in PAIRS:
            row = {"chosen": chosen, "rejected": rejected}
            if prompt is not None:
                row = {"prompt": prompt, **row}
            chat = {"chosen": messages([("assistant", chosen)]), "rejected": messages([("assistant", rejected)]),
                    "prompt": messages([("user", prompt or "Well?")])}
            for r in [row, chat] if chats else [row]:
                args = RewardConfig(output_dir="build", max_length=limit, report_to=[], bf16=False)
                rows = Dataset.from_list([r])
                made = RewardTrainer._prepare_dataset(types.SimpleNamespace(), rows, tok, args, "train")
                pair = [made[0]["chosen_ids"], made[0]["rejected_ids"]] if len(made) else []
                yield r, limit, pair


with open(OUT, "w") as out:
    for folder in ["data/base", "test/golden/tokenizer/metaspace_split", "../shared/tokenizers/llama3_1",
                   "../shared/tokenizers/qwen3", "../shared/tokenizers/tinyllama"]:
        tok = PreTrainedTokenizerFast.from_pretrained(folder)      # AutoTokenizer's LlamaTokenizer has its own
        pad = tok.pad_token_id if tok.pad_token_id is not None else tok.eos_token_id
        for row, limit, ids in rows_of(tok, folder):
            line = {"row": row, "tokenizer": folder, "max_length": limit, "ids": ids,
                    "pooled": pooled(ids, pad) if ids else []}
            out.write(json.dumps(line, separators=(",", ":")) + "\n")
    for labels in [["b", "a", "B", "a"], ["no", "yes", "ä", "z"]]:
        d = Dataset.from_dict({"label": labels}, features=Features({"label": Value("string")}))
        d = d.class_encode_column("label")
        assert isinstance(d.features["label"], ClassLabel)
        line = {"labels": labels, "names": d.features["label"].names, "classes": d["label"][:]}
        out.write(json.dumps(line, separators=(",", ":")) + "\n")

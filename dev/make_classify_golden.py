#!/usr/bin/env python3
"""Writes test/golden/classify.json: what scikit-learn and scipy say about predictions, and torch about the losses of a row of logits, for data/classify.h to agree with.

    python dev/make_classify_golden.py        needs scikit-learn 1.9.1, scipy and torch
"""
import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk

assert version("scikit-learn") == "1.9.1", version("scikit-learn")
rng = random.Random(7)


def scores(p, r, f):
    return [float(v) for v in (p, r, f)]


def classes(expected, answered, K):
    labels = list(range(K))
    p, r, f, s = sk.precision_recall_fscore_support(expected, answered, labels=labels, zero_division=0)
    out = {"expected": expected, "answered": answered, "labels": K, "accuracy": float(sk.accuracy_score(expected, answered)),
           "balanced_accuracy": float(sk.recall_score(expected, answered, labels=sorted(set(expected)), average="macro", zero_division=0)),
           "confusion": sk.confusion_matrix(expected, answered, labels=labels).tolist(),
           "each": [scores(*v) + [int(n)] for *v, n in zip(p, r, f, s)]}
    if set(answered) <= set(expected):
        assert abs(out["balanced_accuracy"] - sk.balanced_accuracy_score(expected, answered)) < 1e-12
    for how in ("macro", "weighted"):
        out[how] = scores(*sk.precision_recall_fscore_support(expected, answered, labels=labels, average=how, zero_division=0)[:3])
    return out


def ranking(score, positive):
    precision, recall, threshold = sk.precision_recall_curve(positive, score)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
    best = len(f1) - 1 - int(np.argmax(f1[::-1] >= f1.max() - 1e-15))
    return {"score": score, "positive": positive, "roc_auc": float(sk.roc_auc_score(positive, score)),
            "average_precision": float(sk.average_precision_score(positive, score)), "threshold": float(threshold[best]), "threshold_f1": float(f1[best])}


def regression(x, y):
    return {"x": x, "y": y, "mse": float(sk.mean_squared_error(y, x)), "mae": float(sk.mean_absolute_error(y, x)), "r2": float(sk.r2_score(y, x)),
            "pearson": float(pearsonr(x, y)[0]), "spearman": float(spearmanr(x, y)[0])}


def multi(answered, expected):
    p, r, f, s = sk.precision_recall_fscore_support(expected, answered, zero_division=0)
    out = {"answered": answered, "expected": expected, "micro_f1": float(sk.f1_score(expected, answered, average="micro", zero_division=0)),
           "subset_accuracy": float(sk.accuracy_score(expected, answered)), "each": [scores(*v) + [int(n)] for *v, n in zip(p, r, f, s)]}
    for how in ("macro", "weighted"):
        out[how] = scores(*sk.precision_recall_fscore_support(expected, answered, average=how, zero_division=0)[:3])
    return out


def loss(kind, z, target, weight, **more):
    t = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(weight, dtype=torch.float64) if weight else None
    if kind == "softmax":
        l = torch.nn.CrossEntropyLoss(weight=w, label_smoothing=more["smoothing"], reduction="sum")(t[None], torch.tensor([target]))
    elif kind == "logistic":
        l = torch.nn.BCEWithLogitsLoss(pos_weight=w)(t, torch.tensor(target, dtype=torch.float64))
    elif kind == "pair":
        l = -torch.nn.functional.logsigmoid(t[0] - t[1] - target)
    else:
        l = torch.nn.MSELoss()(t, torch.tensor([target], dtype=torch.float64))
    l.backward()
    return {"kind": kind, "z": z, "target": target, "weight": weight, **more, "loss": float(l.detach()), "dz": t.grad.tolist()}


def draw(n, K, p=None):
    return rng.choices(range(K), weights=p, k=n)


out = {"classes": [classes(draw(40, 2, [3, 1]), draw(40, 2), 2), classes(draw(60, 5), draw(60, 5, [5, 1, 1, 1, 0]), 5), classes([0, 0, 1], [0, 0, 0], 3),
                   classes([1, 1], [1, 1], 2), classes(draw(30, 3), draw(30, 3), 3)],
       "rankings": [ranking([rng.random() for _ in range(50)], [rng.random() < 0.3 for _ in range(50)]),
                    ranking([rng.randrange(5) / 4 for _ in range(60)], [rng.random() < 0.5 for _ in range(60)]),
                    ranking([0.5] * 6, [True, False, False, True, False, False]), ranking([0.1, 0.2, 0.8, 0.9], [False, False, True, True]),
                    ranking([0.9, 0.8, 0.2], [False, False, True]), ranking([0.5, 0.25, 0.25, 0.125], [True, False, True, False])],
       "regressions": [regression([rng.gauss(0, 1) for _ in range(30)], [rng.gauss(1, 2) for _ in range(30)]),
                       regression([1.0, 2.0, 2.0, 5.0, 5.0, 5.0], [1.5, 1.5, 3.0, 4.0, 4.0, 9.0])],
       "multi": [multi([[rng.random() < 0.5 for _ in range(4)] for _ in range(25)], [[rng.random() < 0.4 for _ in range(4)] for _ in range(25)]),
                 multi([[True, False, False], [False, False, False]], [[True, False, True], [False, False, False]])],
       "losses": []}
for weight in (None, [0.5, 2.0, 1.25]):
    for smoothing in (0.0, 0.1, 0.9):
        for z in ([0.3, -1.2, 2.1], [40.0, -3.0, 900.0], [0.0, 0.0, 0.0]):
            out["losses"].append(loss("softmax", z, rng.randrange(3), weight, smoothing=smoothing))
    for z in ([0.3, -1.2, 2.1], [-800.0, 30.0, 0.0]):
        out["losses"].append(loss("logistic", z, [1.0, 0.0, 1.0], weight))
for z, margin in (([0.3, -0.2], 0.0), ([-1.0, 2.0], 0.5), ([900.0, 0.0], 0.0), ([0.0, 900.0], 0.0)):
    out["losses"].append(loss("pair", z, margin, None))
out["losses"].append(loss("squared", [1.5], -0.25, None))
path = Path(__file__).resolve().parent.parent / "test/golden/classify.json"
path.write_text(json.dumps(out) + "\n")
print(f"{path.name}: {path.stat().st_size} bytes")

"""``sharpnb spectrum`` on sequences, with ``--count``, on a GPT. The truth is a Hessian made of plain autograd."""

import pytest
import torch
from spectrum_project import result
from torch.nn.functional import cross_entropy

from sharpnb import usercode

pytest_plugins = ["spectrum_project"]
MODULE = """
import torch
from torch import nn

class Tagger(nn.Module):  # inputs (length, samples, features), one label a sample
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)
    def forward(self, x):
        return self.b(torch.tanh(self.a(x)).mean(0))

def tagger():
    torch.manual_seed(0)
    return Tagger()

def sequences():
    g = torch.Generator().manual_seed(1)
    sizes = (5, 4), (7, 9), (6, 2)
    return [(torch.randn(t, n, 3, generator=g), torch.randint(3, (n,), generator=g)) for t, n in sizes]
def samples(x, y): return len(y)
def of_a_batch(batch): return batch[0].shape[1]
NUMBERS = [4, 9, 2]
def broken(x, y): return len(z)

class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.one, self.two = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    def forward(self, x):
        n, t, w = x.shape
        q, k, v = self.qkv(self.one(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, w))
        return x + self.mlp(self.two(x))

class GPT(nn.Module):
    def __init__(self, words=23, width=16, length=12):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks, self.norm = nn.Sequential(Block(width, 2), Block(width, 2)), nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight  # tied
    def forward(self, ids):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)))

def gpt():
    torch.manual_seed(0)
    return GPT()

def text():
    ids = torch.randint(23, (10, 13), generator=torch.Generator().manual_seed(3))
    return [(part[:, :-1], part[:, 1:]) for part in ids.split(4)]
def per_token(z, y): return nn.functional.cross_entropy(z.flatten(0, 1), y.flatten())
def flat(): return [(x, y.flatten()) for x, y in text()]
"""


@pytest.fixture
def spectrum(folder, command):
    """Run the command on the file; return the status, what was said and the numbers."""
    (folder / "mine.py").write_text(MODULE)

    def run(model, data, *more):
        named = ("--model", f"mine.py:{model}", "--data", f"mine.py:{data}", "--dtype", "float64", "--out", "o")
        status, out, err = command(*named, *more)
        return status, " ".join(out.split()) + err, result(folder) if (folder / "o/spectrum.json").exists() else {}

    return run


def plain(model, data, weights):
    """Return parameters and the gradient of the mean over all data, of which a Hessian is made by autograd alone."""
    net = usercode.find(f"mine.py:{model}", "model")().double()
    batches = [(x.double() if x.is_floating_point() else x, y) for x, y in usercode.find(f"mine.py:{data}", "data")()]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        outputs = [net(x) for x, _ in batches]
        losses = [cross_entropy(z.flatten(0, -2), y.flatten()) for z, (_, y) in zip(outputs, batches, strict=True)]
        loss = sum(w * value for w, value in zip(weights, losses, strict=True)) / sum(weights)
        parameters = list(net.parameters())
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    return parameters, torch.cat([g.flatten() for g in gradient])


def products(parameters, gradient, v):
    return torch.cat([g.flatten() for g in torch.autograd.grad(gradient @ v, parameters, retain_graph=True)])


@pytest.mark.parametrize("count", ["mine.py:samples", "mine.py:of_a_batch", "mine:NUMBERS", "1"])
def test_count_says_what_a_batch_of_sequences_holds(spectrum, count):
    status, said, found = spectrum("tagger", "sequences", "--top", "3", "--probes", "0", "--count", count)
    assert status == 0, said
    parameters, gradient = plain("tagger", "sequences", [1, 1, 1] if count == "1" else [4, 9, 2])
    dense = torch.stack([products(parameters, gradient, row) for row in torch.eye(len(gradient), dtype=torch.float64)])
    truth = torch.linalg.eigvalsh(dense).flip(0)[:3]
    torch.testing.assert_close(torch.tensor(found["largest"]["values"], dtype=torch.float64), truth, rtol=1e-6, atol=0)
    assert found["origin"]["count"] == count and (count == "1" or ("15 samples in 3 batches" in said))


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["count=", "Here: --count file.py:function"]), (["--count", "many"], ["count 'many'", "file.py:function"]),
    (["--count", "mine.py:broken"], ["count 'mine.py:broken'", "mine.py, line", "NameError"]),
])
def test_a_count_that_is_missing_or_wrong_is_a_sentence(spectrum, arguments, words):
    status, said, _ = spectrum("tagger", "sequences", *arguments)
    assert status == 2 and all(word in said for word in words), said


@pytest.mark.parametrize("data", [["text"], ["flat", "--count", "mine.py:samples"]], ids=str)
def test_a_gpt_with_tied_embeddings_and_fused_attention(data, spectrum):
    options = "--loss", "mine.py:per_token", "--top", "1", "--probes", "2", "--steps", "20"
    status, said, found = spectrum("gpt", *data, *options)
    assert status == 0, said
    parameters, gradient = plain("gpt", "text", [4, 4, 2])
    assert found["n"] == len(gradient)  # the tied weights once
    v = torch.randn(len(gradient), dtype=torch.float64)
    for _ in range(300):
        v = products(parameters, gradient, v / v.norm())
    truth = float(v.norm())  # of the eigenvalue that is largest in absolute value
    assert found["largest"]["values"][0] == pytest.approx(truth, rel=1e-3) and found["density"]["lambda_min"] > -truth
    told = found["cost"]["said"]["products"]
    assert found["products"] / 2 <= told <= 2 * found["products"] and f"about {told} products" in said

"""Which layers of a model become sparse, on models of all sorts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aswl
from aswl.nn import SparseConv2d, SparseLinear


def sparsify(model, **options):
    return aswl.ASWL(model, **({"density": 0.5, "schedule": "constant"} | options))


class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1))
        self.head = nn.ModuleDict({"fc": nn.Linear(16, 16), "out": nn.Linear(16, 4)})

    def forward(self, x):
        return self.head["out"](self.head["fc"](self.body(self.stem(x)).mean((2, 3))))


ALL = ["stem", "body.1", "head.fc", "head.out"]


@pytest.mark.filterwarnings("ignore:ASWL. density 0.5 is that of the pruned layers")
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ALL),
        ({"depthwise": True}, ["stem", "body.0", "body.1", "head.fc", "head.out"]),
        ({"exclude": ("stem", "head.out")}, ["body.1", "head.fc"]),
        ({"exclude": "head"}, ["stem", "body.1"]),  # a module's name stands for all inside it
        ({"exclude": ["*.fc"]}, ["stem", "body.1", "head.out"]),
        ({"include": ["head.*"]}, ["head.fc", "head.out"]),
        ({"include": ["head"], "exclude": ["head.out"]}, ["head.fc"]),
    ],
)
def test_choice(options, names):
    model = Tree()
    sparsifier = sparsify(model, **options)
    assert list(sparsifier.densities()) == names
    kinds = (SparseConv2d, SparseLinear)
    assert [name for name, module in model.named_modules() if isinstance(module, kinds)] == names


@pytest.mark.parametrize(
    ("model", "options", "error", "match"),
    [
        (Tree(), {"exclude": ("fc",)}, ValueError, "exclude pattern 'fc' matches no layer; there are: stem, body.0"),
        (Tree(), {"include": ("stem", "nope*")}, ValueError, "include pattern 'nope\\*' matches no layer"),
        (nn.Sequential(nn.BatchNorm1d(3)), {}, ValueError, "nn.Linear or nn.Conv2d layers; Sequential has none"),
        (Tree(), {"exclude": "*"}, ValueError, "nothing is left to prune"),
        (Tree().requires_grad_(False), {}, ValueError, "nothing is left to prune; frozen or not chosen: stem"),
        (nn.Sequential(nn.LazyLinear(3)), {}, ValueError, "lazy modules have seen an input; '0' has not"),
        (nn.DataParallel(nn.Linear(3, 3)), {}, TypeError, "before it is wrapped in DataParallel"),
    ],
)
def test_refuses(model, options, error, match):
    with pytest.raises(error, match=match):
        sparsify(model, **options)
    assert not any(isinstance(module, aswl.nn.SparseLayer) for module in model.modules())


def test_frozen_layers_are_left_alone():
    model = Tree()
    model.stem.requires_grad_(False)
    assert list(sparsify(model).densities()) == ["body.1", "head.fc", "head.out"]
    assert type(model.stem) is nn.Conv2d


def test_subclasses_are_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Scaled(4, 4), nn.Linear(4, 40))
    assert list(sparsify(model).densities()) == ["1"]


def test_sparse_layers_of_the_user_are_taken():
    model = nn.Sequential(SparseLinear(4, 40), nn.ReLU(), nn.Linear(40, 4))
    assert list(sparsify(model).densities()) == ["0", "2"]


def test_a_module_used_twice_counts_once():
    layer = nn.Linear(10, 10)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    sparsifier = sparsify(model)
    assert sparsifier.densities() == {"0": 0.5}


def test_a_tied_weight_is_pruned_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 10), nn.Linear(10, 3))
    model[2].weight = model[0].weight
    sparsifier = sparsify(model, steps=10, schedule="cubic", density=0.2)
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.1))
    sparsifier.attach(optimizer)
    assert model[2].attention is model[0].attention
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(20, 10)), torch.randint(3, (20,))).backward()
        optimizer.step()
    assert sparsifier.summary().size == 130
    assert sparsifier.summary().kept == 26
    assert torch.equal(model[0].threshold, model[2].threshold)
    assert model[0].threshold > 0
    x = torch.randn(5, 10)
    plain = sparsifier.finalize()
    assert plain[0].weight is plain[2].weight
    assert int((plain[0].weight == 0).sum()) + int((plain[3].weight == 0).sum()) == 104
    torch.testing.assert_close(plain(x), model(x))


def test_tied_paper_mode_folds_once():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    sparsifier = aswl.ASWL(model, gamma=1.0, initial_attention=0.5)
    x = torch.randn(5, 10)
    torch.testing.assert_close(sparsifier.finalize()(x), model(x))


def test_a_weight_shared_with_an_embedding_stays_dense():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.body = nn.Linear(8, 80)
            self.back = nn.Linear(80, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

    assert list(sparsify(Model()).densities()) == ["body", "back"]


def test_warns_when_excluded_layers_outweigh_the_density():
    model = nn.Sequential(nn.Linear(10, 100), nn.Linear(100, 10))
    with pytest.warns(UserWarning, match=r"density 0\.1 is that of the pruned layers.*cannot come below 0\.500"):
        sparsify(model, density=0.1, exclude="1")


def test_warns_when_min_keep_outweighs_the_density():
    model = nn.Sequential(nn.Linear(10, 100), nn.Linear(100, 10))
    with pytest.warns(UserWarning, match="min_keep holds 100 of 2000"):
        sparsifier = sparsify(model, density=0.01, min_keep=50)
    assert sparsifier.summary().kept == 100


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_fused_transformer_inference_does_not_skip_the_mask():
    """PyTorch's fused encoder layer would take the dense weights; in eval mode it must give what training gives."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    sparsifier = sparsify(model, density=0.1)
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        trained, evaluated, plain = model.train()(x), model.eval()(x), sparsifier.finalize().eval()(x)
    torch.testing.assert_close(evaluated, trained)
    torch.testing.assert_close(plain, trained, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_batches_of_a_transformer():
    """In eval mode nn.TransformerEncoder turns them into nested tensors."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2)
    sparsify(model, density=0.3)
    x, padded = torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padded[0, 3:] = True
    with torch.no_grad():
        trained, evaluated = (model.train(mode)(x, src_key_padding_mask=padded) for mode in (True, False))
    torch.testing.assert_close(evaluated[~padded], trained[~padded])


def tiny_resnet(transformers):
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config)


def tiny_vit(transformers):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("build", [tiny_resnet, tiny_vit])
def test_transformers_models_train_and_finalize(build):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = build(transformers)
    layers = [n for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)]
    sparsifier = aswl.ASWL(model, density=0.1, steps=8)
    assert list(sparsifier.densities()) == layers
    optimizer = torch.optim.AdamW(sparsifier.param_groups(lr=1e-3, adaptive=True))
    sparsifier.attach(optimizer)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(x, labels=y).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    total = sparsifier.summary().size
    assert sparsifier.summary().kept == round(0.1 * total)
    plain = sparsifier.finalize().eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(x).logits, model.eval()(x).logits, rtol=1e-4, atol=1e-5)
    assert sum(int((plain.get_submodule(n).weight != 0).sum()) for n in layers) == round(0.1 * total)

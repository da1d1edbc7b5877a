"""The Triton kernels against the paper's equations in float64, and against the torch form they stand in for.

Where there is no GPU they run in Triton's interpreter, which must be chosen before Triton is first imported.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    if "triton" in sys.modules and "TRITON_INTERPRET" not in os.environ:
        pytest.skip(
            "Triton is imported already; set TRITON_INTERPRET=1 or run this file alone", allow_module_level=True
        )
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="Triton is not installed; pip install triton")

from gprune.graph import representativeness as torch_form  # noqa: E402
from gprune.kernels import cuda  # noqa: E402
from gprune.kernels.ragged import top_per_view  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")

STORED, RECOMPUTED = 2**30, 0
TEMPERATURE = 0.03
ROWS = cuda.ROWS
TIE = 1e-6
"""Relative difference of scores below which either of two tokens may be kept."""


@pytest.fixture(autouse=True)
def tensor_cores(monkeypatch):
    """Let the interpreter multiply as tensor cores do.

    Its own `dot` takes the bits of bfloat16 for integers, and multiplies float32 in float32 where a GPU adds three
    products of the upper and lower halves of the significand.
    """
    if DEVICE == "cuda":
        return
    import triton.language as tl
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def values(operand: TensorHandle) -> np.ndarray:
        if operand.dtype.scalar == tl.bfloat16:
            return (operand.data.astype(np.uint32) << 16).view(np.float32)
        return operand.data.astype(np.float32)

    def upper(numbers: np.ndarray) -> np.ndarray:
        return (numbers.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)

    def dot(self, left, right, total, precision, *_):
        a, b = values(left), values(right)
        if left.dtype.scalar == tl.float32:
            assert precision == ir.INPUT_PRECISION.TF32x3
            a_upper, b_upper = upper(a), upper(b)
            product = upper(a - a_upper) @ b_upper + a_upper @ upper(b - b_upper) + a_upper @ b_upper
        else:
            product = a @ b
        return TensorHandle(product + total.data, total.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(cuda, "ROWS", 64)  # fewer programs: the interpreter takes long for each


def scores_of(features: Tensor, sizes: list[int], memory: int = STORED, **settings) -> tuple[Tensor, Tensor]:
    """The kernels' scores and degrees, with the paper's settings where none are given, on the CPU."""
    settings = {"similarity": 0.5, "iterations": 5, "temperature": TEMPERATURE, "init": "norm"} | settings
    scores, degrees = cuda.representativeness(features.to(DEVICE), sizes, **settings, max_memory=memory)
    assert (scores.dtype, degrees.dtype) == (torch.float32, torch.int64)
    return scores.cpu(), degrees.cpu()


def reference(features: Tensor, similarity=0.5, iterations=5, init="norm") -> tuple[Tensor, Tensor]:
    """S(t) / D and D of one view [N, d] in float64: a softmax over the edges and a matrix power."""
    features = features.double()
    norms = features.norm(dim=-1)
    cosine = (features / norms[:, None]) @ (features / norms[:, None]).T
    cosine.fill_diagonal_(1)
    edges = cosine >= similarity
    transition = (cosine / TEMPERATURE).masked_fill(~edges, -torch.inf).softmax(-1)
    degrees = edges.sum(-1)
    start = norms if init == "norm" else torch.ones_like(norms)
    return start @ torch.linalg.matrix_power(transition, iterations) / degrees, degrees


def by_view(function, features: Tensor, sizes: list[int], **settings) -> tuple[Tensor, Tensor]:
    """What `function` says of each view alone, one after the other."""
    parts = [function(view, **settings) for view in features.split(sizes) if len(view)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([degrees for _, degrees in parts])


def one_view(features: Tensor, **settings) -> tuple[Tensor, Tensor]:
    scores, degrees = torch_form(features[None], **settings)
    return scores[0], degrees[0]


def rounding(iterations: int) -> float:
    """Relative error that float32 cosines allow: a step divides exp(cosine / temperature) by a sum of such."""
    return 1e-6 + 2 * iterations * torch.finfo(torch.float32).eps / TEMPERATURE


def ties_at_the_border(kept: Tensor, other: Tensor, exact: Tensor, sizes: list[int]) -> int:
    """How many tokens of each view are in one selection only; all of them must tie with those in the other only."""
    ties = 0
    for view in torch.arange(sum(sizes)).split(sizes):
        here, there = (view[torch.isin(view, rows)] for rows in (kept, other))
        only_here, only_there = here[~torch.isin(here, there)], there[~torch.isin(there, here)]
        assert len(only_here) == len(only_there)
        at = exact[torch.cat([only_here, only_there])]
        if len(at):
            assert at.max() - at.min() <= TIE * at.max()
        ties += len(only_here)
    return ties


def gaussian(n: int, d: int, seed: int, shared: float = 1.0) -> Tensor:
    """Random tokens around a common direction, so that cosines fall on both sides of 0.5."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) + shared * torch.randn(d, generator=generator)


def clustered(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    members = torch.randint(5, (n,), generator=generator)
    return torch.randn(5, d, generator=generator)[members] + 0.4 * torch.randn(n, d, generator=generator)


def signs(n: int, d: int, seed: int) -> Tensor:
    """Tokens of +1 and -1, d a power of 4: their norms and cosines are exact in every precision."""
    return torch.randint(2, (n, d), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1


# Tokens, and how many of them each view has.
CASES: dict[str, tuple[Tensor, list[int]]] = {
    "random, a block and a bit": (gaussian(137, 72, seed=0), [137]),
    "exactly two blocks": (clustered(256, 64, seed=1), [256]),
    "odd size and width": (clustered(143, 37, seed=2), [143]),
    "one token": (torch.tensor([[3.0, 4.0]]), [1]),
    "two tokens, width one": (torch.tensor([[2.0], [0.5]]), [2]),
    "ragged": (gaussian(151, 24, seed=3, shared=0.8), [0, 5, 129, 1, 0, 16]),
    "duplicates": (gaussian(33, 24, seed=4).repeat(4, 1), [132]),
    "all equal": (torch.full((130, 16), 0.37), [130]),
    "zero tokens": (torch.cat([clustered(90, 20, seed=5), torch.zeros(20, 20)]), [100, 10]),
    "one zero token": (torch.zeros(1, 3), [1]),
    "exact": (signs(140, 16, seed=6), [131, 9]),
}
NOT_EXACT = {"duplicates", "all equal"}
"""Cases in which float32 decides whether the cosine of two equal tokens is 1 or a little less."""

SETTINGS: list[dict] = [
    {},
    {"iterations": 0},
    {"iterations": 1, "init": "ones"},
    {"similarity": 0.9},
    {"similarity": -1.0},
    {"similarity": 1.0},
]


def check(features: Tensor, sizes: list[int], memory: int, settings: dict) -> None:
    """Assert scores, degrees and kept tokens; print how many were kept instead of others that tie with them."""
    scores, degrees = scores_of(features, sizes, memory, **settings)
    exact, exact_degrees = by_view(reference, features, sizes, **settings)
    assert degrees.tolist() == exact_degrees.tolist()
    torch.testing.assert_close(scores.double(), exact, rtol=rounding(settings.get("iterations", 5)), atol=0)
    expected, _ = by_view(one_view, features, sizes, **settings)
    ties = 0
    for share in (0.1, 0.3, 0.5):
        counts = [round(share * size) for size in sizes]
        kept, as_torch, as_float64 = (top_per_view(ranked, sizes, counts) for ranked in (scores, expected, exact))
        ties_at_the_border(kept, as_float64, exact, sizes)
        ties += ties_at_the_border(kept, as_torch, exact, sizes)
    print(f"{ties} tokens kept instead of others that tie with them, at three budgets")  # pytest -rP shows it


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_float32_features(case, settings):
    if settings.get("similarity") == 1.0 and case in NOT_EXACT:
        pytest.skip("float32 decides whether the cosine of two equal tokens is 1 or a little less")
    check(*CASES[case], STORED, settings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_half_precision_features(case, dtype):
    features, sizes = CASES[case]
    for settings in ({}, {"similarity": 0.9}):
        check(features.to(dtype), sizes, STORED, settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_weights_that_are_recomputed(case, dtype):
    features, sizes = CASES[case]
    check(features.to(dtype), sizes, RECOMPUTED, {})


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: the interpreter takes minutes for views of this size")
@pytest.mark.parametrize("memory", [STORED, RECOMPUTED], ids=["stored", "recomputed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_views_of_an_image_of_llava_next(dtype, memory):
    check(clustered(576 + 2304, 4096, seed=16).to(dtype), [576, 2304], memory, {})


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]], ids=str)
def test_no_token_at_all(sizes):
    scores, degrees = scores_of(torch.zeros(0, 8), sizes)
    assert scores.shape == degrees.shape == (0,)


@pytest.mark.parametrize("memory", [STORED, RECOMPUTED], ids=["stored", "recomputed"])
def test_equal_input_gives_equal_bits_whatever_else_is_in_the_launch(memory):
    features, sizes = gaussian(300, 40, seed=7), [150, 20, 0, 130]
    scores, degrees = scores_of(features, sizes, memory)
    again, _ = scores_of(features, sizes, memory)
    assert torch.equal(again, scores)
    alone, alone_degrees = by_view(lambda view: scores_of(view, [len(view)], memory), features, sizes)
    assert torch.equal(alone, scores)
    assert torch.equal(alone_degrees, degrees)


def test_stored_and_recomputed_weights_give_the_same_scores():
    features, sizes = clustered(290, 48, seed=8).bfloat16(), [140, 150]
    scores, degrees = scores_of(features, sizes, STORED)
    recomputed, recomputed_degrees = scores_of(features, sizes, RECOMPUTED)
    assert torch.equal(recomputed_degrees, degrees)
    torch.testing.assert_close(recomputed, scores, rtol=rounding(5), atol=0)


def test_views_whose_weights_fit_are_stored_and_the_others_recomputed(monkeypatch):
    """A budget for 40 tokens: 150 do not fit, 30 and 20 fit together, 40 alone. A row takes a multiple of 16 places."""
    features, sizes = gaussian(290, 24, seed=9), [30, 20, 150, 0, 40, 30, 20]
    memory, launches = 4 * 40 * 48, []
    prepare = cuda._prepare

    def spy(graph, sizes, views, max_memory):
        gather = prepare(graph, sizes, views, max_memory)
        launches.append((views, gather.keywords["STORED"]))
        return gather

    monkeypatch.setattr(cuda, "_prepare", spy)
    scores, degrees = scores_of(features, sizes, memory)
    assert launches == [([0, 1], True), ([2], False), ([4], True), ([5, 6], True)]
    exact, exact_degrees = by_view(reference, features, sizes)
    assert torch.equal(degrees, exact_degrees)
    torch.testing.assert_close(scores.double(), exact, rtol=rounding(5), atol=0)


def test_a_view_fills_many_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(cuda, "ROWS", ROWS)
    features = gaussian(70, 24, seed=10)
    scores, degrees = scores_of(features, [70])
    exact, exact_degrees = reference(features)
    assert torch.equal(degrees, exact_degrees)
    torch.testing.assert_close(scores.double(), exact, rtol=rounding(5), atol=0)


def test_where_weights_lie_does_not_overflow():
    """The third of three views of 60 000 tokens; the weights of one take more places than 32 bits can tell."""
    sizes = [60_000, 60_000, 60_000]
    blocks = cuda._blocks(sizes, [0, 2], 16)
    assert blocks.dtype == torch.int64
    assert blocks[-1].tolist() == [120_000, 60_000, 60_000**2, 59_984]
    tiles = cuda._tiles(sizes, [0, 2])
    assert tiles[-1].tolist() == [120_000, 60_000, 60_000**2, 59_904, 59_904]
    assert len(tiles) == 2 * (469 * 470 // 2)


def test_edges_whose_weight_underflows_count():
    """At this temperature only equal directions have a weight that is not 0; the edges are those of any other."""
    features = clustered(60, 16, seed=11)
    scores, degrees = scores_of(features, [60], temperature=1e-9)
    _, expected = reference(features)
    assert torch.equal(degrees, expected)
    torch.testing.assert_close(scores, features.norm(dim=-1) / degrees, rtol=1e-6, atol=0)


def test_a_tiny_temperature_does_not_overflow():
    """The cosine of two equal tokens may round to more than 1."""
    features, sizes = CASES["duplicates"]
    scores, _ = scores_of(features.half(), sizes, temperature=1e-9)
    assert scores.isfinite().all()


def test_float16_norms_that_overflow_float16_are_right():
    scores, _ = scores_of(torch.full((1, 16), 6e4, dtype=torch.float16), [1])
    torch.testing.assert_close(scores.item(), 4 * 6e4, rtol=1e-6, atol=0)


def test_strides_and_float64():
    features = gaussian(24, 40, seed=12)
    scores, _ = scores_of(features.T.contiguous(), [40])
    assert torch.equal(scores_of(features.T, [40])[0], scores)
    assert torch.equal(scores_of(features.T.double(), [40])[0], scores)


def test_sizes_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="adds up to 5 tokens but features has 6 rows"):
        scores_of(torch.zeros(6, 4), [2, 3])


def test_torch_compile_sees_one_operator():
    features, sizes = gaussian(40, 16, seed=13).to(DEVICE), [10, 30]

    def kept(features: Tensor) -> Tensor:
        scores, degrees = cuda.representativeness(2 * features, sizes, 0.5, 5, TEMPERATURE, "norm")
        return top_per_view(scores + 0 * degrees, sizes, [3, 9])

    compiled = torch.compile(kept, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(features), kept(features))


def test_the_operator_keeps_what_torch_asks_of_one():
    features = gaussian(20, 16, seed=14).to(DEVICE)
    torch.library.opcheck(cuda.representativeness, (features, [5, 15], 0.5, 2, TEMPERATURE, "ones"))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: nothing else can be waited for")
def test_nothing_waits_for_the_device():
    features, sizes = gaussian(300, 64, seed=15).bfloat16().to(DEVICE), [150, 0, 150]
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for memory in (STORED, RECOMPUTED):
            scores, _ = cuda.representativeness(features, sizes, 0.5, 5, TEMPERATURE, "norm", memory)
            top_per_view(scores, sizes, [10, 0, 20])
    finally:
        torch.cuda.set_sync_debug_mode(mode)

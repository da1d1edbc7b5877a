"""All pairs of vectors by rows: the product as it is written, kept or computed when read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gprune.kernels.gram import Gram, gram

COUNTS = [1, 2, 127, 128, 129, 400]


def vectors(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(count), dtype=dtype)


@pytest.mark.parametrize("count", [0, *COUNTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_is_the_product(count: int, dtype: torch.dtype) -> None:
    given = vectors(count, dtype)
    torch.testing.assert_close(gram(given), given @ given.T)


@pytest.mark.parametrize("max_memory", [0, 2**29])
@pytest.mark.parametrize("count", COUNTS)
def test_rows_are_those_of_the_product(count: int, max_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gprune.kernels.gram.PAIRS", 1000)
    given = vectors(count)
    products = given @ given.T
    read = Gram(given, torch.exp, max_memory)
    index = torch.arange(count).flip(0)[::2]
    torch.testing.assert_close(read.rows(index), products[index].exp())
    read.rows(index).zero_()  # what is read is the reader's
    parts = list(read.parts(index))
    assert max(part.numel() * count for part, _ in parts) <= max(1000, count)
    assert torch.equal(torch.cat([part for part, _ in parts]), index)
    torch.testing.assert_close(torch.cat([rows for _, rows in parts]), products[index].exp())
    assert torch.equal(torch.cat([part for part, _ in read.parts()]), torch.arange(count))


@pytest.mark.parametrize("max_memory", [0, 2**29])
@pytest.mark.parametrize("count", COUNTS)
def test_nearest_is_the_largest_product_with_another(count: int, max_memory: int) -> None:
    given = vectors(count)
    others = (given @ given.T).fill_diagonal_(-torch.inf)
    torch.testing.assert_close(Gram(given, max_memory=max_memory).nearest(), others.amax(1))

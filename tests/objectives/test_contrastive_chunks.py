"""Contrastive losses in blocks of rows: the loss and gradients of the whole matrix, without the matrix."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weft.core.errors import ConfigError
from weft.objectives.contrastive import SigmoidContrastive, SoftmaxContrastive
from weft.objectives.pair_losses import sigmoid_pair_loss, softmax_pair_loss

ROWS, WIDTH = 13, 6


def sides(rows=ROWS, dtype=torch.float64, width=WIDTH):
    generator = torch.Generator().manual_seed(0)
    media, text = (F.normalize(torch.randn(rows, width, generator=generator, dtype=dtype), dim=-1) for _ in range(2))
    return [t.requires_grad_() for t in (media, text, torch.tensor(20.0, dtype=dtype), torch.tensor(-10.0, dtype=dtype))]


def plain_softmax(media, text, scale, bias):
    logits = scale * media @ text.T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.T, own, reduction="sum")) / 2 + 0 * bias


def plain_sigmoid(media, text, scale, bias):
    logits = scale * media @ text.T + bias
    return -F.logsigmoid((2 * torch.eye(len(logits), dtype=logits.dtype) - 1) * logits).sum()


def chunked_softmax(media, text, scale, bias, chunk):
    return softmax_pair_loss(media, text, scale, chunk=chunk) + 0 * bias


def chunked_sigmoid(media, text, scale, bias, chunk):
    return sigmoid_pair_loss(media, text, scale, bias, chunk=chunk)


LOSSES = pytest.mark.parametrize(
    ("plain", "chunked"), [(plain_softmax, chunked_softmax), (plain_sigmoid, chunked_sigmoid)], ids=["softmax", "sigmoid"]
)


@LOSSES
@pytest.mark.parametrize("chunk", [1, 4, 13, 1000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])  # rounding of either
def test_blocks_give_the_loss_and_the_gradients_of_the_whole_matrix(plain, chunked, chunk, dtype, tolerance):
    whole = sides(dtype=dtype)
    in_blocks = sides(dtype=dtype)
    expected = plain(*whole)
    loss = chunked(*in_blocks, chunk)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for gradient, true in zip(torch.autograd.grad(3 * loss, in_blocks), torch.autograd.grad(3 * expected, whole), strict=True):
        torch.testing.assert_close(gradient, true, rtol=0, atol=tolerance * max(1.0, float(true.abs().max())))


def test_a_pair_that_is_surely_right_keeps_its_small_loss_and_gradient():
    media = torch.tensor([[1.0]], requires_grad=True)
    loss = sigmoid_pair_loss(media, torch.ones(1, 1), torch.tensor(30.0), torch.tensor(-10.0), chunk=1)
    assert loss.item() == pytest.approx(math.exp(-20.0), rel=1e-4)  # softplus(x) - x would be 0 in fp32
    loss.backward()
    assert media.grad.item() == pytest.approx(-30 * math.exp(-20.0), rel=1e-4)


class LargestTensor(TorchDispatchMode):
    """The number of values of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


def largest_tensor(loss, *arguments):
    with LargestTensor() as seen:
        loss(*arguments).backward()
    return seen.largest


@LOSSES
def test_no_tensor_of_all_pairs_is_ever_made(plain, chunked):
    rows, chunk = 256, 32
    assert largest_tensor(plain, *sides(rows)) == rows * rows  # the instrument sees the matrix where there is one
    assert largest_tensor(chunked, *sides(rows), chunk) == chunk * rows
    assert largest_tensor(chunked, *sides(2 * rows), chunk) == 2 * chunk * rows  # grows with the batch, not with its square


class PeakBytes(TorchDispatchMode):
    """The most bytes that lived at once, of all that operations made, each storage counted once until it is freed."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, weakref.WeakSet()

    def free(self, size):
        self.live -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result


def peak_bytes(loss, *arguments):
    with PeakBytes() as seen:
        loss(*arguments).backward()
    return seen.peak


@LOSSES
def test_the_peak_of_memory_grows_with_the_batch_and_not_with_its_square(plain, chunked):
    chunk, small, large = 8, 128, 512
    growth = peak_bytes(plain, *sides(large, torch.float32)) / peak_bytes(plain, *sides(small, torch.float32))
    assert growth > 12  # four times the rows: the instrument sees the square where there is one
    growth = peak_bytes(chunked, *sides(large, torch.float32), chunk) / peak_bytes(chunked, *sides(small, torch.float32), chunk)
    assert growth < 4.5


@pytest.mark.parametrize("objective", [SoftmaxContrastive, SigmoidContrastive])
def test_a_block_without_rows_is_refused(objective):
    with pytest.raises(ConfigError, match="chunk=0"):
        objective.Config(chunk=0)

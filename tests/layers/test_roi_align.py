"""RoIAlign against one place after another, and what it gives on grids whose features are known."""

import math

import pytest
import torch

from weft.core.errors import ConfigError
from weft.layers.roi_align import bin_weights, roi_align

SEED = torch.Generator().manual_seed(0)
GRIDS = torch.randn(3, 4, 5, 7, generator=SEED, dtype=torch.float64)
BOXES = torch.tensor(
    [
        [0, 0.0, 0.0, 1.0, 1.0],  # the whole picture
        [2, 0.13, 0.21, 0.77, 0.94],
        [0, 0.4, 0.4, 0.43, 0.41],  # within one cell
        [1, -0.3, 0.5, 0.2, 1.4],  # beyond three edges
        [1, 0.9, 0.9, 1.0, 1.0],  # the last corner
        [2, 1.5, 1.5, 2.0, 2.0],  # wholly outside
        [2, -0.05, -0.1, 0.02, 0.03],  # within a cell of the edge
    ],
    dtype=torch.float64,
)


def read_at(grid, y, x):
    """One place of a grid [H][W] of numbers, by the four cells around it."""
    height, width = len(grid), len(grid[0])
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    y, x = (min(y, height - 1), min(x, width - 1))
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    upper = (1 - along) * grid[top][left] + along * grid[top][right]
    lower = (1 - along) * grid[bottom][left] + along * grid[bottom][right]
    return (1 - down) * upper + down * lower


def one_by_one(features, boxes, size, sampling):
    out = torch.zeros(len(boxes), features.shape[1], size, size, dtype=features.dtype)
    height, width = features.shape[2:]
    for r, (picture, x1, y1, x2, y2) in enumerate(boxes.tolist()):
        left, top = x1 * width - 0.5, y1 * height - 0.5
        bin_w, bin_h = (x2 - x1) * width / size, (y2 - y1) * height / size
        across, down = sampling or max(1, math.ceil(bin_w)), sampling or max(1, math.ceil(bin_h))
        for c, channel in enumerate(features[int(picture)].tolist()):
            for i in range(size):
                for j in range(size):
                    total = 0.0
                    for a in range(down):
                        for b in range(across):
                            y = top + i * bin_h + (a + 0.5) * bin_h / down
                            x = left + j * bin_w + (b + 0.5) * bin_w / across
                            total += read_at(channel, y, x)
                    out[r, c, i, j] = total / (across * down)
    return out


@pytest.mark.parametrize("sampling", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_it_equals_reading_one_place_after_another(size, sampling):
    expected = one_by_one(GRIDS, BOXES, size, sampling)
    torch.testing.assert_close(roi_align(GRIDS, BOXES, size, sampling), expected, rtol=0, atol=1e-12)  # float64, other order


def test_a_constant_grid_gives_the_constant_wherever_the_box_lies_in_the_picture():
    inside = BOXES[[0, 1, 2, 4]]
    found = roi_align(torch.full((3, 2, 5, 7), 0.75), inside.float(), 3)
    torch.testing.assert_close(found, torch.full_like(found, 0.75), rtol=0, atol=1e-6)  # float32 sums of weights


def test_a_linear_ramp_gives_the_middle_of_the_box():
    """On cells that hold their own middle, in fractions, the mean over a box half a cell off the edge is the box's centre."""
    height, width = 8, 10
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    ramps = torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]
    boxes = torch.tensor([[0, 0.1, 0.2, 0.5, 0.9], [0, 0.06, 0.07, 0.94, 0.93], [0, 0.3, 0.3, 0.31, 0.32]])
    middles = torch.stack(((boxes[:, 1] + boxes[:, 3]) / 2, (boxes[:, 2] + boxes[:, 4]) / 2), 1)
    for sampling in (0, 1, 2):
        found = roi_align(ramps, boxes, 4, sampling).mean((2, 3))
        torch.testing.assert_close(found, middles, rtol=0, atol=1e-6)  # float32


def test_a_box_of_exactly_one_cell_reads_that_cell():
    for row in range(5):
        for column in range(7):
            box = torch.tensor([[1, column / 7, row / 5, (column + 1) / 7, (row + 1) / 5]], dtype=torch.float64)
            found = roi_align(GRIDS, box, 1, 1)[0, :, 0, 0]
            torch.testing.assert_close(found, GRIDS[1, :, row, column], rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampling", [0, 2])
def test_a_box_without_extent_is_read_at_its_point(sampling):
    point = torch.tensor([[0, 0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)  # the middle cell of 5 x 7
    found = roi_align(GRIDS, point, 2, sampling)
    expected = GRIDS[0, :, 2, 3].view(1, 4, 1, 1).expand(1, 4, 2, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_wholly_outside_there_are_zeros():
    assert not roi_align(GRIDS, BOXES[5:6], 3).any()


def test_boxes_come_back_in_their_order_and_depend_on_their_own_picture_alone():
    together = roi_align(GRIDS, BOXES, 2)
    for number, box in enumerate(BOXES):
        alone = box.clone()[None]
        alone[0, 0] = 0
        picture = GRIDS[int(box[0])][None]
        torch.testing.assert_close(together[number : number + 1], roi_align(picture, alone, 2), rtol=0, atol=1e-12)


def test_the_gradient_of_features_and_boxes_is_the_numerical_one():
    grids = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    corners = torch.tensor([[0.13, 0.21, 0.77, 0.94], [0.31, 0.05, 0.62, 0.52]], dtype=torch.float64, requires_grad=True)
    picture = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    for sampling in (0, 2):
        assert torch.autograd.gradcheck(
            lambda g, c, s=sampling: roi_align(g, torch.cat((picture, c), 1), 2, s), (grids, corners)
        )


def test_no_boxes_give_no_features():
    for sampling in (0, 2):
        assert roi_align(GRIDS, BOXES[:0], 3, sampling).shape == (0, 4, 3, 3)


def test_in_bfloat16_places_stay_exact():
    grids = GRIDS.bfloat16()
    found = roi_align(grids, BOXES.float(), 3)
    assert found.dtype == torch.bfloat16
    expected = roi_align(grids.float(), BOXES.float(), 3)
    assert torch.equal(found, expected.bfloat16())  # only the result is rounded


@pytest.mark.parametrize(("bins", "sampling"), [(0, 2), (3, -1)])
def test_sizes_that_are_no_counts_are_refused(bins, sampling):
    with pytest.raises(ConfigError, match="RoIAlign needs"):
        bin_weights(torch.zeros(1), torch.ones(1), 4, bins, sampling)

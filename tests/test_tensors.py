"""Noise that is a row's own: normal, white, the same in any batch, whichever way it is drawn; means of any layout."""

import pytest
import torch

from stimopt.tensors import generator, mean_over_last, row_keys, row_noise

LIKE = torch.zeros((), dtype=torch.float64)


@pytest.mark.parametrize("count", [7, 256, 257, 2000])
def test_a_row_has_the_same_noise_alone_and_in_a_batch(count):
    keys = row_keys((5,), generator(1))
    together = row_noise(keys, (count,), 3, LIKE)
    for row in range(5):
        assert torch.equal(row_noise(keys[row : row + 1], (count,), 3, LIKE)[0], together[row])


@pytest.mark.parametrize("count", [64, 600])
def test_noise_is_standard_normal_and_white(count):
    rows = 40_000 // count
    noise = row_noise(row_keys((rows,), generator(2)), (count,), 5, LIKE)
    assert abs(float(noise.mean())) < 4 / (rows * count) ** 0.5
    assert abs(float(noise.var()) - 1) < 4 * (2 / (rows * count)) ** 0.5
    assert abs(float(noise.pow(4).mean()) - 3) < 4 * (96 / (rows * count)) ** 0.5
    for lag in (1, 2, count // 2):
        assert abs(float((noise[:, lag:] * noise[:, :-lag]).mean())) < 4 / (rows * (count - lag)) ** 0.5


def test_neighbouring_keys_and_salts_give_unrelated_noise():
    keys = torch.arange(400)
    noise = torch.stack([row_noise(keys, (100,), salt, LIKE) for salt in (0, 1, 8, 2**61)])
    across_keys = (noise[:, 1:] * noise[:, :-1]).mean()
    across_salts = torch.stack([(noise[i] * noise[j]).mean() for i in range(4) for j in range(i)])
    assert abs(float(across_keys)) < 4 / (4 * 399 * 100) ** 0.5
    assert float(across_salts.abs().max()) < 4.5 / (400 * 100) ** 0.5


def test_single_precision_sees_the_same_path():
    keys = row_keys((3,), generator(4))
    single = row_noise(keys, (50,), 1, torch.zeros((), dtype=torch.float32))
    torch.testing.assert_close(single.double(), row_noise(keys, (50,), 1, LIKE), rtol=0, atol=0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0), (1, 0, 2)])
def test_the_mean_over_the_last_axis_is_that_in_any_order_of_memory(order):
    tensor = torch.rand(4, 5, 6, generator=generator(1), dtype=torch.float64)
    laid = tensor.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())
    torch.testing.assert_close(mean_over_last(laid), tensor.mean(-1))
    torch.testing.assert_close(mean_over_last(laid[0, 0]), tensor[0, 0].mean(-1))

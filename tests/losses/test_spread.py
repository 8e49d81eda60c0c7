import pytest
import torch

from twoview.losses.spread import spread


def test_it_is_the_standard_deviation_of_unit_rows_in_units_of_its_healthy_value() -> None:
    z = torch.randn(50, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.7
    unit = z / z.norm(dim=1, keepdim=True)
    rms = unit.var(dim=0, unbiased=False).mean().sqrt()
    assert spread(z).item() == pytest.approx(rms.item() * 8**0.5)
    assert 1 - spread(z).item() ** 2 == pytest.approx((unit @ unit.T).mean().item())


def test_its_ends() -> None:
    z = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert spread(z).item() == pytest.approx(1, abs=1e-3)
    assert spread(torch.ones(16, 64)) < 1e-3
    one_line = torch.cat([torch.ones(8, 4), -torch.ones(8, 4)])
    assert spread(one_line) == 1  # two opposite points are as far apart as can be: rank is another question


def test_it_has_no_gradient_and_is_exact_from_bfloat16() -> None:
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = spread(z)
    assert not found.requires_grad
    assert found.equal(spread(z.detach().float()))

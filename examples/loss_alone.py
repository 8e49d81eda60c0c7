"""Losses are functions of tensors: rows of two views in, a scalar out."""

import math

import torch

from twoview.losses import nt_xent, vicreg

z1 = torch.randn(128, 32, requires_grad=True)  # (B, P) of first views
z2 = torch.randn(128, 32, requires_grad=True)  # (B, P) of second views

loss = nt_xent(z1, z2, temperature=0.5)
loss.backward()
print(f"NT-Xent {loss.item():.3f}; of a network that knows nothing {math.log(2 * 128 - 1):.3f}")
print(f"VICReg {vicreg(z1, z2).loss.item():.3f}")

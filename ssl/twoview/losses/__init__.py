"""Losses: pure functions of the rows of a global batch, without configuration, logging or state.

All arithmetic is in float32 at least, under autocast too. Each docstring gives shapes, source, and the values at chance
and at collapse.
"""

from twoview.losses.contrastive import Contrast, info_nce, info_nce_contrast, nt_xent, nt_xent_contrast
from twoview.losses.decoupled import decoupled_contrast
from twoview.losses.factor import SingularError
from twoview.losses.information import CorInfoMax, Moments, cor_info_max
from twoview.losses.lejepa import LeJEPA, lejepa, sigreg
from twoview.losses.manifold import Manifold, mmcr
from twoview.losses.nearest import NearestContrast, nearest_contrast
from twoview.losses.prototypes import centred_softmax, sinkhorn, swapped_prediction
from twoview.losses.redundancy import Redundancy, barlow_twins
from twoview.losses.regression import negative_cosine
from twoview.losses.relational import Relation, relational
from twoview.losses.spread import spread
from twoview.losses.supervised import sup_con
from twoview.losses.vicreg import VICReg, vicreg
from twoview.losses.whitening import w_mse, whiten

__all__ = [
    "Contrast",
    "CorInfoMax",
    "LeJEPA",
    "Manifold",
    "Moments",
    "NearestContrast",
    "Redundancy",
    "Relation",
    "SingularError",
    "VICReg",
    "barlow_twins",
    "centred_softmax",
    "cor_info_max",
    "decoupled_contrast",
    "info_nce",
    "info_nce_contrast",
    "lejepa",
    "mmcr",
    "nearest_contrast",
    "negative_cosine",
    "nt_xent",
    "nt_xent_contrast",
    "relational",
    "sigreg",
    "sinkhorn",
    "spread",
    "sup_con",
    "swapped_prediction",
    "vicreg",
    "w_mse",
    "whiten",
]

"""Named methods that are compositions of a codec, or an averaging method, and stages."""

from __future__ import annotations

from tightwire.compression.recipe import Recipe
from tightwire.compression.recipes.rounds import DiLoCoX, SparseLoCo
from tightwire.compression.recipes.signs import (
    DRIVE,
    DistributedLion,
    EFSignSGD,
    OneBitAdamRecipe,
    OneBitLAMB,
    OneBitSGD,
    ZeroOneAdam,
)
from tightwire.compression.recipes.sparse import (
    DGC,
    LAGS,
    Cocktail,
    DeMo,
    EF21Muon,
    FetchSGD,
    GradientDropping,
    SketchedSGD,
    SparseTernary,
)

RECIPES: tuple[type[Recipe], ...] = (
    DGC,
    GradientDropping,
    EFSignSGD,
    OneBitSGD,
    OneBitAdamRecipe,
    OneBitLAMB,
    ZeroOneAdam,
    DeMo,
    SketchedSGD,
    FetchSGD,
    LAGS,
    SparseTernary,
    SparseLoCo,
    DRIVE,
    DistributedLion,
    Cocktail,
    EF21Muon,
    DiLoCoX,
)

"""Well-known models have the parameters that they are known for."""

import pytest

from tightwire.errors import FileError
from tightwire.profile.models import MODELS, model_shape

PARAMETERS = {
    "resnet50": 25_557_032, "vgg16": 138_357_544, "gpt2": 124_439_808, "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200, "llama-8b": 8_030_261_248, "llama-70b": 70_553_706_496,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_shapes(name: str) -> None:
    shape = model_shape(name)
    assert shape.numel == PARAMETERS.get(name, shape.numel)
    names = [f"{layer.name}.{parameter}" for layer in shape.layers for parameter in layer.shapes]
    assert len(set(names)) == len(names)
    assert shape.forward_flops > shape.numel


def test_operations_are_those_of_the_papers() -> None:
    assert model_shape("resnet50").forward_flops == pytest.approx(2 * 4.1e9, rel=0.02)  # 4.1 G multiply-adds
    assert model_shape("vgg16").forward_flops == pytest.approx(2 * 15.5e9, rel=0.01)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(FileError, match="'alexnet' is no known model; known: resnet50"):
        model_shape("alexnet")

import pytest
from typer.testing import CliRunner

from tightwire.bench.collectives import Bench, wire_bound_s
from tightwire.cli.bench import app
from tightwire.errors import PlanError


def test_wire_bound_is_the_payload_over_the_payload_rate() -> None:
    rate_bytes_per_s = 125e6 * 1514 / 1448
    assert wire_bound_s("ring", 1_000_000, 4, rate_bytes_per_s) == pytest.approx(1.5e6 / 125e6)
    assert wire_bound_s("gloo", 1_000_000, 4, rate_bytes_per_s) == pytest.approx(1.5e6 / 125e6)
    assert wire_bound_s("allgather", 1_000_000, 4, rate_bytes_per_s) == pytest.approx(3e6 / 125e6)


def test_unknown_programs_and_empty_buffers_are_refused() -> None:
    with pytest.raises(PlanError, match="rong is no known program; known: gloo, ring"):
        Bench(workers=4, rate_bytes_per_s=1e6, sizes=(1024,), programs=("rong",))
    with pytest.raises(PlanError, match="at least one sample, and 4 bytes"):
        Bench(workers=4, rate_bytes_per_s=1e6, sizes=(0,), programs=("ring",))


@pytest.mark.parametrize(
    "options",
    [["--rate", "0"], ["--rate", "none"], ["--sizes", "many"], ["--programs", "rong"], ["--workers", "1"]],
)
def test_bad_input_ends_with_one_sentence(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["collectives", *options]).exit_code == 2

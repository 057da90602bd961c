"""The laws of collectives over real Gloo processes, where receives land in memory that nobody copies."""

from typing import Any

import pytest

from tests.workers import run_processes

SCRIPT = """
import hashlib
from tightwire.architecture import PROGRAMS, Runner, build
from tightwire.compression import Identity, Int8, TopK

def inputs(numel, r):
    return torch.randn(numel, generator=torch.Generator().manual_seed(r))

def average(net, name, codec, numel, tag):
    counting = transport.Counting(net)
    runner = Runner(build(name, size), counting, numel=numel, dtype=torch.float32,
                    codec=codec, tag=tag, piece_bytes=4096)
    for _ in range(2):
        counting.tally.clear()
        work, mean = inputs(numel, rank), torch.empty(numel)
        runner.run(work, mean, seed=1)
        assert counting.bytes_sent == runner.bytes_sent
    expected = sum(inputs(numel, r) for r in range(size))
    if not codec.lossless:
        net.all_reduce(work).wait()
        expected -= work
    worst = float((mean - expected / size).abs().max()) if numel else 0.0
    return [worst, hashlib.sha256(mean.numpy().tobytes()).hexdigest()]

net = transport.init(deadline_s=20)
found = {}
CODECS = (Identity(), Int8(), TopK(0.01))
for tag, (name, codec) in enumerate([(n, c) for n in PROGRAMS for c in CODECS]):
    if name == "native" and codec.sums_as is None or codec.combine == "none" and name != "allgather":
        continue
    for numel in (0, 7, 20_011) if size == 4 else (7,):  # on threads all sizes are walked at every number of ranks
        found[f"{name} {codec} {numel}"] = average(net, name, codec, numel, tag)
answer(found)
"""


@pytest.mark.parametrize("n", [3, 4])
def test_mean_traffic_and_agreement_over_gloo(n: int) -> None:
    answers: list[dict[str, Any]] = [end.answer for end in run_processes(n, SCRIPT)]
    assert answers[0]
    for case, (worst, digest) in answers[0].items():
        assert worst < 1e-5, case
        assert {answer[case][1] for answer in answers} == {digest}, case


def test_runners_under_way_together_do_not_mix() -> None:
    """Two runners on two threads of each rank share one transport; their tags keep them apart."""
    run_processes(
        3,
        """
        from tightwire.architecture import Runner, build
        from tightwire.compression import Identity
        net = transport.init(deadline_s=20)
        buffers = [torch.full((50_000,), float(10 * b + rank)) for b in range(2)]
        runners = [
            Runner(build("ring", size), net, numel=50_000, dtype=torch.float32,
                   codec=Identity(), tag=b, piece_bytes=8192)
            for b in range(2)
        ]
        threads = [threading.Thread(target=r.run, args=(b, b)) for r, b in zip(runners, buffers)]
        for thread in threads if rank else reversed(threads):
            thread.start()
        for thread in threads:
            thread.join()
        assert [float(b.min()) for b in buffers] == [float(b.max()) for b in buffers] == [1.0, 11.0]
        """,
    )

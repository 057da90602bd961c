"""Parameter servers on threads: laws 2, 4, 5, 8 and 9, bounds on staleness, and who goes on without whom."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.training import (
    MakeOptimizer,
    Net,
    Trained,
    adam,
    assert_close,
    job,
    loss_of,
    momentum,
    plain,
    same,
    sgd,
    train,
    values,
)
from tightwire._attach import attach
from tightwire.architecture.server.layout import MessageLayout
from tightwire.architecture.server.messages import (
    ERROR_TEXT,
    HEADER_BYTES,
    REPLY,
    REQUEST,
    Flag,
    Header,
    Kind,
    Post,
    pack_state,
    unpack_state,
)
from tightwire.architecture.server.service import LENGTH_BITS, Service
from tightwire.architecture.server.shard import Shard
from tightwire.buckets import plan_layout
from tightwire.compression import Identity
from tightwire.errors import AttachError, PeerError, PlanError, TransportError
from tightwire.plan import Plan
from tightwire.sync import Asp, Backup, Served, Ssp
from tightwire.transport import Single, Transport, run_threads

SYNCS = ("ssp:0", "ssp:2", "asp", "asp:rate_by=staleness,dc=0.1", "backup:1")
PLACES = ("ps", "ps:shards=2", "ps:servers=1", "ps:servers=1,mix=true")
CODECS = ("none", "int8+ef", "topk:0.2+ef", "bf16/fusion:64", "int8+ef+momentum:0.5+clip:1+dense-first:2")
PLANS = [
    f"{sync}/{PLACES[(i + j) % 4]}/{CODECS[(i + 2 * j) % 5]}"
    for i, sync in enumerate(SYNCS)
    for j in range(3)
] + ["bsp/ps:servers=1", "bsp/ps:servers=2/int8+ef"]
# Under these a round is one update, whoever comes first.
DETERMINISTIC = (
    "bsp/ps",
    "bsp/ps:shards=2",
    "bsp/ps:hierarchical=true,node=2",
    "bsp/ps:servers=1",
    "ssp:0/ps",
    "backup:0/ps:servers=1,mix=true",
)


def work(
    transport: Transport, plan: str, *, steps: int = 4, optimizer: MakeOptimizer = sgd
) -> Trained | None:
    """Trains on workers, serves on servers."""
    with job(transport, plan, optimizer=optimizer) as j:
        is_server = j.run.is_server
        for step in range(0 if is_server else steps):
            j.step(step)
    report = j.run.report()
    assert report.sent_bytes == report.planned_bytes > 0
    return None if is_server else Trained(values(j.model), j.seen, report)


def work_all(n: int, plan: str, **options: Any) -> list[Trained]:
    results = run_threads(n, lambda transport: work(transport, plan, **options), deadline_s=20)
    return [trained for trained in results if trained is not None]


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("plan", PLANS)
def test_traffic_and_agreement(plan: str, n: int) -> None:
    results = work_all(n, plan)
    for trained in results:
        assert same(trained.parameters, results[0].parameters)
        assert all(p.isfinite().all() for p in trained.parameters)
        assert sum(trained.report.staleness.values()) == 4


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize("plan", DETERMINISTIC)
def test_rounds_of_all_are_bsp_for_any_optimizer(plan: str, optimizer: MakeOptimizer) -> None:
    results = work_all(4, plan, optimizer=optimizer, steps=5)
    for trained in results:
        assert_close(trained.parameters, plain(len(results), steps=5, optimizer=optimizer))
        assert all(same(a, b) for a, b in zip(trained.seen, results[0].seen, strict=True))


def test_a_world_of_one_is_plain_pytorch() -> None:
    expected = plain(1, steps=3, optimizer=adam)
    for plan in PLANS:
        if "servers" not in plan:
            assert same(train(Single(), plan, steps=3, optimizer=adam).parameters, expected)


@pytest.mark.parametrize("plan", ["ssp:0/ps", "bsp/ps:servers=1", "ssp:0/ps:shards=1/int8+ef"])
def test_a_schedule_and_groups_are_as_the_worker_has_them(plan: str) -> None:
    def fit(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> list[Tensor]:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.05, 0.1], total_steps=10)
        for x in batches:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            scheduler.step()
        return values(model)

    def make() -> tuple[Net, torch.optim.Optimizer]:
        model = Net()
        groups = [
            {"params": model.first.parameters(), "weight_decay": 0.1},
            {"params": model.last.parameters()},
        ]
        return model, torch.optim.AdamW(groups, lr=0.01)

    batches = [torch.randn(4, 5, generator=torch.Generator().manual_seed(s)) for s in range(6)]

    def worker(transport: Transport) -> list[Tensor] | None:
        model, optimizer = make()
        with attach(model, optimizer, plan, transport=transport) as run:
            return None if run.is_server else fit(model, optimizer, batches)

    results = run_threads(3, worker, deadline_s=20)
    expected = fit(*make(), batches)
    if "int8" not in plan:
        assert_close(results[0] or [], expected, atol=1e-5)
    assert torch.equal((results[0] or [])[0], expected[0])  # `scale` is in no group


@pytest.mark.parametrize("s", [0, 1, 3])
def test_the_bound_on_staleness_is_never_violated(s: int) -> None:
    """Random delays, thousands of reads: after a step no worker is more than s clocks ahead of what others began."""
    workers, steps = 4, 250
    began = [0] * workers
    ahead: list[int] = []

    def worker(transport: Transport) -> dict[int, int]:
        delays = random.Random(transport.rank)
        with job(transport, f"ssp:{s}/ps:shards=2", model=tiny()) as j:
            for step in range(steps):
                if delays.random() < 0.05:
                    time.sleep(delays.random() * 0.005)
                began[transport.rank] = step + 1
                one_step(j.model, j.optimizer)
                ahead.append(step + 1 - min(began))
            return dict(j.run._engine.leads)  # type: ignore[attr-defined]

    leads = run_threads(workers, worker, deadline_s=20)
    assert len(ahead) == workers * steps
    assert max(ahead) <= s
    for seen in leads:
        assert max(seen) <= s
        assert sum(seen.values()) == steps
    if s:
        assert any(max(seen) > 0 for seen in leads)


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(1, 3)).square().mean().backward()
    optimizer.step()


def test_nobody_waits_for_a_slow_worker() -> None:
    """Under asp and backup the others finish while the slow one has not begun."""
    for plan in ("asp/ps:servers=1", "backup:1/ps:servers=1"):
        release = threading.Event()
        done: list[int] = []

        def worker(
            transport: Transport,
            plan: str = plan,
            release: threading.Event = release,
            done: list[int] = done,
        ) -> None:
            with job(transport, plan, model=tiny()) as j:
                if transport.rank == 0:
                    assert release.wait(15)
                for _ in range(0 if j.run.is_server else 5):
                    one_step(j.model, j.optimizer)
                done.append(transport.rank)
                if {1, 2} <= set(done):
                    release.set()

        run_threads(4, worker, deadline_s=20)
        assert set(done[:3]) == {1, 2, 3}
        assert 0 in done


def test_workers_with_less_data_leave_the_others_to_go_on() -> None:
    def worker(transport: Transport) -> list[Tensor]:
        with job(transport, "ssp:1/ps") as j:
            for step in range(2 + 5 * transport.rank):
                j.step(step)
        return values(j.model)

    results = run_threads(3, worker, deadline_s=20)
    assert all(same(parameters, results[0]) for parameters in results)


def test_a_worker_that_fails_is_lost_and_said_to_be() -> None:
    class Stumble(Exception):
        pass

    def worker(transport: Transport) -> int:
        try:
            with job(transport, "ssp:1/ps:servers=1", model=tiny()) as j:
                for step in range(0 if j.run.is_server else 8):
                    if transport.rank == 1 and step == 3:
                        raise Stumble
                    one_step(j.model, j.optimizer)
        except Stumble:
            return -1
        return j.run.report().steps

    with pytest.warns(UserWarning, match="lost rank 1 after its step 3"):
        assert run_threads(4, worker, deadline_s=10) == [8, -1, 8, 0]


def test_whoever_owns_a_shard_is_missed() -> None:
    class Stumble(Exception):
        pass

    def worker(transport: Transport) -> str:
        try:
            with job(transport, "asp/ps", model=tiny()) as j:
                for step in range(1000):
                    if transport.rank == 1 and step == 3:
                        raise Stumble
                    one_step(j.model, j.optimizer)
        except PeerError as error:
            return f"{error.ranks}"
        except Stumble:
            return "stumbles"
        return "goes on"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_threads(3, worker, deadline_s=5) == ["(1,)", "stumbles", "(1,)"]


@pytest.mark.filterwarnings("ignore:the server has lost")  # as who waited too long leaves
def test_who_is_waited_for_too_long_is_named() -> None:
    """ssp waits for the slowest, but not for ever; the server lives all the while and says who is late."""

    def worker(transport: Transport) -> str:
        try:
            with job(transport, "ssp:1/ps:servers=1", model=tiny()) as j:
                for step in range(0 if j.run.is_server else 20):
                    if transport.rank == 1 and step == 2:
                        time.sleep(3)
                        return ""
                    one_step(j.model, j.optimizer)
        except PeerError as error:
            return f"{error.ranks} {error}"
        return "served"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = run_threads(3, worker, deadline_s=1)[0]
    assert said.startswith("(1,) rank 1 sent nothing for 1 s, while step")


@pytest.mark.parametrize(
    "plan", [*DETERMINISTIC[3:], "ssp:0/ps:shards=2/int8+ef", "bsp/ps:servers=1/topk:0.2+ef"]
)
def test_resuming_is_continuing(plan: str) -> None:
    """Law 4: servers' parameters and optimizer state are in the checkpoint, a dedicated server's in a worker's."""

    def worker(transport: Transport) -> None:
        with job(transport, plan, optimizer=adam) as j:
            steps = () if j.run.is_server else range(5)
            for step in steps:
                j.step(step)
            if steps:
                saved = j.run.state_dict()
                for step in range(5, 8):
                    j.step(step)
        with job(transport, plan, model=Net(seed=77), optimizer=adam) as other:
            if steps:
                other.run.load_state_dict(saved)
                assert other.run.step == 5
                for step in range(5, 8):
                    other.step(step)
        if steps:
            assert same(values(j.model), values(other.model))

    run_threads(3, worker, deadline_s=20)


def test_evaluating_sees_what_all_would_end_with() -> None:
    def worker(transport: Transport) -> list[list[Tensor]]:
        seen = []
        with job(transport, "asp/ps/int8") as j:
            for step in range(6):
                j.step(step)
                if step % 3 == 2:
                    with j.run.evaluating():
                        seen.append(values(j.model))
        return seen

    results = run_threads(3, worker, deadline_s=20)
    for seen in results:
        assert all(same(a, b) for a, b in zip(seen, results[0], strict=True))


def test_shards_of_a_model_on_the_host_are_there_whatever_was_asked() -> None:
    on_host, on_device = (
        work_all(3, f"ssp:0/ps:shards=2{option}/int8+ef", optimizer=adam)
        for option in ("", ",on_device=true")
    )
    assert same(on_host[0].parameters, on_device[0].parameters)
    assert on_device[0].report.device_bytes == 0


def test_where_there_are_no_shards_none_can_be_on_a_device() -> None:
    with pytest.raises(
        PlanError, match=r"no shards to keep under bsp.*\n?.*Nearest legal: bsp/ps, or ssp:0/ps:on_"
    ):
        Plan.parse("bsp/ps:on_device=true")
    text = "asp/ps:servers=1,mix=true,on_device=true"
    assert str(Plan.parse(text)) == text


@pytest.mark.parametrize("plan", ["ssp:0/ps", "ssp:2/ps:servers=1", "asp/ps/int8+ef"])
def test_a_poisoned_gradient_changes_nothing(plan: str) -> None:
    def worker(transport: Transport) -> tuple[bool, int]:
        with job(transport, plan, optimizer=adam) as j:
            for step in range(0 if j.run.is_server else 5):
                j.step(step, factor=float("nan") if (transport.rank, step) == (1, 2) else 1.0)
        return all(bool(p.isfinite().all()) for p in values(j.model)), j.run.report().skipped

    results = run_threads(3, worker, deadline_s=20)
    assert all(finite for finite, _ in results)
    assert results[1][1] >= 1
    if plan.startswith("ssp:0"):
        assert [skipped for _, skipped in results] == [1, 1, 1]


def test_a_server_that_would_train_is_told_what_to_write() -> None:
    def worker(transport: Transport) -> None:
        with job(transport, "asp/ps:servers=1", model=tiny()) as j:
            if j.run.is_server:
                with pytest.raises(AttachError, match=r"if not run\.is_server"):
                    one_step(j.model, j.optimizer)
            else:
                one_step(j.model, j.optimizer)

    run_threads(2, worker, deadline_s=10)


@pytest.mark.parametrize(
    ("n", "plan", "options", "error", "said"),
    [
        (2, "bsp/ps:servers=2", {}, PlanError, "none is left to train"),
        (1, "bsp/ps:servers=1", {}, PlanError, "none is left to train"),
        (2, "asp/ps:shards=3", {}, PlanError, "more shards than the 2 workers"),
        (3, "backup:3/ps", {}, PlanError, "give at most backup:2"),
        (5, "asp/ps", {}, PlanError, "4 trained parameters: give at most ps:shards=4"),
        (2, "asp/ps", {"buffers": "every-step"}, AttachError, "leave buffers at 'start'"),
    ],
)
def test_what_cannot_be_attached(n: int, plan: str, options: dict[str, Any], error: type, said: str) -> None:
    def worker(transport: Transport) -> None:
        with pytest.raises(error, match=said):
            attach(model := tiny(), sgd(model.parameters()), plan, transport=transport, **options)

    run_threads(n, worker, deadline_s=5) if n > 1 else worker(Single())


# One shard, by hand.


def shard(
    policy: Served, workers: int = 2, lr: float = 1.0, deadline_s: float = 0.4
) -> tuple[Shard, MessageLayout]:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    layout = MessageLayout(
        buckets=plan_layout({"x": parameter.detach()}, [[0]]), compressions=((Identity(),),), num_settings=4
    )
    made = Shard(
        layout, policy, {"x": parameter.detach()}, optimizer, {id(parameter): "x"},
        workers=range(workers), seed=0, deadline_s=deadline_s, late_s=deadline_s,
    )  # fmt: skip
    return made, layout


def push(
    made: Shard, layout: MessageLayout, worker: int, clock: int, gradient: list[float], *, read_in: int = 0
) -> tuple[Header, Tensor]:
    payload = torch.zeros(layout.push_bytes(clock), dtype=torch.uint8)
    used, settings, messages = layout.open_push(payload, clock)
    used.fill_(1)
    settings.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # dampening, lr, momentum, weight_decay
    Identity().encode(torch.tensor(gradient), messages[0])
    header, answer = made.push(
        worker, Header(kind=Kind.PUSH, clock=clock, round=read_in), payload, lambda: None
    )
    (message,) = layout.open_pull(answer, clock)
    return header, message.clone().view(torch.float32)


def test_a_gradient_counts_as_one_nth() -> None:
    made, layout = shard(Asp())
    _, x = push(made, layout, 0, 1, [1.0, 1.0])
    assert x.tolist() == [0.5, 1.5]


def test_stale_gradients_count_less() -> None:
    made, layout = shard(Asp(rate_by="staleness"))
    for clock in (1, 2, 3, 4):
        push(made, layout, 0, clock, [0.0, 0.0])
    header, x = push(made, layout, 1, 1, [1.0, 1.0])
    assert header.staleness == 4
    assert x.tolist() == [0.75, 1.75]


def test_delay_compensation() -> None:
    """g + λ g⊙g⊙(x_now − x_read) (DC-ASGD, equation 10), with the parameters that this worker read."""
    made, layout = shard(Asp(rate_by="full", dc=0.5))
    _, x = push(made, layout, 0, 1, [1.0, 0.0])
    assert x.tolist() == [0.0, 2.0]
    _, x = push(made, layout, 1, 1, [2.0, 2.0])
    assert x.tolist() == [0.0 - (2 + 0.5 * 4 * -1.0), 0.0]


def test_backup_takes_the_first_and_drops_the_late() -> None:
    made, layout = shard(Backup(1), workers=2)
    _, x = push(made, layout, 0, 1, [1.0, 0.0])
    assert x.tolist() == [0.0, 2.0]
    header, x = push(made, layout, 1, 1, [0.0, 1.0])
    assert Flag.LATE in header.flags
    assert x.tolist() == [0.0, 2.0]
    assert made.late == 1
    assert header.round == 1
    # Read here in round 1, and from another shard, which was behind, in round 0: as late as if read there.
    header, x = push(made, layout, 1, 2, [0.0, 1.0], read_in=0)
    assert Flag.LATE in header.flags
    assert x.tolist() == [0.0, 2.0]
    header, x = push(made, layout, 1, 3, [0.0, 1.0], read_in=1)
    assert not header.flags
    assert x.tolist() == [0.0, 1.0]


def test_a_round_is_the_mean_of_the_first_and_the_slow_one_waits_for_nobody() -> None:
    """One of four is slow: the others' rounds are of three; its own first is late by them, its next ones count."""
    over = threading.Event()

    def worker(transport: Transport) -> tuple[list[Tensor], dict[int, int], int]:
        slow = transport.rank == 3
        with job(transport, "backup:1/ps") as j:
            for step in range(3):
                if slow and step == 0:
                    j.optimizer.zero_grad()
                    loss_of(j.model, 3, 0).backward()
                    assert over.wait(20)
                    j.optimizer.step()
                else:
                    j.step(step)
            seen = values(j.model)
            if transport.rank == 2:
                over.set()
            if not slow:
                assert over.wait(20)
        report = j.run.report()
        return seen, dict(report.staleness), report.skipped

    found = run_threads(4, worker, deadline_s=30)
    three = plain(3, steps=3)
    for seen, staleness, skipped in found[:3]:
        assert_close(seen, three)
        assert staleness == {0: 3}
        assert skipped == 0
    assert found[3][1] == {0: 2, 3: 1}


def test_a_step_out_of_order_is_refused() -> None:
    made, layout = shard(Asp())
    with pytest.raises(TransportError, match="rank 1 sent the gradient of step 7, and step 1 was due"):
        push(made, layout, 1, 7, [0.0, 0.0])


def test_ssp_does_not_wait_for_ever() -> None:
    made, layout = shard(Ssp(1))
    push(made, layout, 0, 1, [0.0, 0.0])
    with pytest.raises(
        PeerError, match=r"rank 1 sent nothing for 0\.4 s, while step 1 was waited for under ssp:1"
    ):
        push(made, layout, 0, 2, [0.0, 0.0])


def noise() -> Tensor:
    return torch.zeros(HEADER_BYTES, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (noise, "seen one that begins with"),
        (
            lambda: Header(kind=Kind.VALUES, clock=1).to_tensor(),
            "rank 1 sent VALUES, which only a server says",
        ),
    ],
)
def test_whoever_talks_nonsense_hears_why_and_stops_nobody(message: Callable[[], Tensor], said: str) -> None:
    """Its own conversation ends at once, others' go on without it."""

    def worker(transport: Transport) -> str | None:
        channel = transport.channel()
        if transport.rank == 0:
            made, layout = shard(Asp(), workers=2)
            service = Service(made, layout, Post(channel), {1: 1})
            service.join()
            push(made, layout, 0, 1, [1.0, 1.0])
            return None
        channel.isend(message(), 0, REQUEST).wait()
        answer = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        channel.irecv(answer, 0, REPLY).wait()
        header = Header.of(answer)
        assert header.kind == Kind.ERROR
        text = torch.empty(header.size & (1 << LENGTH_BITS) - 1, dtype=torch.uint8)
        channel.irecv(text, 0, ERROR_TEXT).wait()
        return text.numpy().tobytes().decode()

    heard = run_threads(2, worker, deadline_s=5)[1]
    assert heard is not None
    assert said in heard


def test_headers() -> None:
    header = Header(kind=Kind.VALUES, flags=Flag.LATE, clock=3, slowest=1, staleness=2, updates=9, size=7)
    assert header.to_tensor().numel() == HEADER_BYTES
    assert Header.of(header.to_tensor()) == header
    with pytest.raises(TransportError, match="seen one that begins with"):
        Header.of(torch.zeros(HEADER_BYTES, dtype=torch.uint8))


def test_states_travel_without_pickling() -> None:
    state = {
        "a": {"x": torch.randn(2, 3).bfloat16(), "n": 3, "none": None, "empty": torch.empty(0, 3)},
        "b": 1.5,
    }
    back = unpack_state(pack_state(state))
    assert torch.equal(back["a"]["x"], state["a"]["x"])  # type: ignore[index]
    assert back["a"]["empty"].shape == (0, 3)
    assert (back["a"]["n"], back["a"]["none"], back["b"]) == (3, None, 1.5)


def test_who_waits_hears_that_its_server_lives_however_busy_that_is() -> None:
    """Steps of others come more often than signs of life are due, and are none themselves."""
    made, layout = shard(Asp(), deadline_s=4.0)
    alive = threading.Event()
    waiting = threading.Thread(target=lambda: made.leave(0, alive.set))
    waiting.start()
    for clock in range(1, 30):
        push(made, layout, 1, clock, [0.0, 0.0])
        if alive.wait(0.2):
            break
    made.leave(1, lambda: None)
    waiting.join()
    assert alive.is_set()


def test_who_waits_for_a_slower_worker_goes_on_once_that_has_ended() -> None:
    """At once, and not when it next looks whether somebody lives."""
    made, layout = shard(Ssp(1), deadline_s=600.0)
    push(made, layout, 0, 1, [0.0, 0.0])
    ahead = threading.Thread(target=lambda: push(made, layout, 0, 2, [0.0, 0.0]), daemon=True)
    ahead.start()
    time.sleep(0.2)
    assert ahead.is_alive()
    ended = threading.Thread(target=lambda: made.leave(1, lambda: None), daemon=True)
    ended.start()
    ahead.join(20)
    assert not ahead.is_alive()
    made.leave(0, lambda: None)
    ended.join(20)
    assert not ended.is_alive()

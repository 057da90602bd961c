"""A communication hook for stock DistributedDataParallel: any compression of a plan, with state that checkpoints."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast, final

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.futures import Future
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from tightwire._attach import Scaler
from tightwire.answers import DEFAULTS, CompressionAnswer, Refusal, Sender, text_with
from tightwire.architecture.round import Round
from tightwire.averaging import Averager, BucketAverager, build_averager
from tightwire.averaging.bucket import Spared
from tightwire.buckets import Bucket, BucketLayout, plan_layout
from tightwire.compression.routing import compression_for
from tightwire.devices import Mark, device_named, device_of
from tightwire.errors import AttachError, PlanError
from tightwire.files import own_version
from tightwire.integrations._parts import named_plan
from tightwire.plan import Plan
from tightwire.runtime.agreement import require_agreement, wire_facts
from tightwire.runtime.checkpoint import merged, require_alike
from tightwire.runtime.engines.memory import Named, load_memory, memory
from tightwire.runtime.gradients import accumulator_of
from tightwire.runtime.variance import configure_variance
from tightwire.transport import Counting, Transport, current
from tightwire.transport.blame import name_ranks
from tightwire.transport.reach import reaching

# So many passes may be dropped between two steps; after more, steps are made by something that nobody sees.
MOST_DROPPED = 16


class GradBucket(Protocol):
    """What is needed of a `torch.distributed.GradBucket`."""

    def index(self) -> int:
        """Returns its place: DDP hands buckets over in this order, from 0."""

    def is_last(self) -> bool:
        """Whether it ends the backward pass."""

    def buffer(self) -> Tensor:
        """Returns its flat memory."""

    def gradients(self) -> list[Tensor]:
        """Returns its gradients, views of that memory."""

    def parameters(self) -> list[Tensor]:
        """Returns their parameters, in the same order."""


class Wrapped(Protocol):
    """What is needed of a `DistributedDataParallel`."""

    @property
    def module(self) -> nn.Module:
        """Returns the model inside."""

    def register_comm_hook(self, state: object, hook: Callable[..., Future[Tensor]]) -> None:
        """Has `hook` called with `state` for every bucket."""


def ddp_hook(
    plan: Plan | str, *, transport: Transport | None = None, scaler: Scaler | None = None, seed: int = 0
) -> DDPHook:
    """Makes a hook with which DDP averages gradients as `plan` says.

        tw.init()
        ddp = DistributedDataParallel(model)
        hook = tw.ddp_hook("bsp/allreduce/topk:0.01+ef")
        hook.register(ddp)

    Args:
        plan: of sync `bsp`; its schedule is left out, for DDP cuts and orders buckets itself.
        transport: between the ranks; by default the one that `tightwire.init()` joined.
        scaler: the AMP GradScaler, if there is one, so that leftovers are kept in unscaled units.
        seed: of stochastic codecs, the same on every rank.

    Raises:
        PlanError: a plan that cannot work, or not under DDP.
    """
    return DDPHook(
        plan_for_ddp(plan), current() if transport is None else transport, scaler=scaler, seed=seed
    )


def plan_for_ddp(plan: Plan | str) -> Plan:
    """Returns a plan that DDP can carry out.

    Raises:
        PlanError: it cannot, or it is still to be found.
    """
    plan = named_plan(plan, "DDP")
    refusal = None
    if str(plan.sync) != "bsp":
        refusal = Refusal(
            reason=f"DDP cannot train by {plan.sync}: it averages the gradients of every step.",
            nearest=(text_with(plan, sync="bsp", schedule=DEFAULTS["schedule"]),),
        )
    elif str(plan.schedule) != DEFAULTS["schedule"]:
        refusal = Refusal(
            reason=f"DDP cannot schedule by {plan.schedule}: it cuts buckets itself (bucket_cap_mb) and sends each "
            "when it is full.",
            nearest=(text_with(plan, schedule=DEFAULTS["schedule"]),),
        )
    if refusal:
        raise PlanError(f"{refusal} Or use tightwire.attach.")
    return plan


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One bucket of one round, for the thread."""

    averagers: Sequence[BucketAverager]
    gradients: Mapping[str, Tensor]
    buffer: Tensor
    is_last: bool
    now: Round
    filled: Mark
    future: Future[Tensor]


@final
class DDPHook:
    """Averages DDP's buckets on a thread of its own, while backward goes on; made by `ddp_hook`.

    All state is kept by parameter name: DDP cuts its buckets anew after the first step, and checkpoints may be loaded
    under other buckets. A mean with a NaN or Inf leaves no trace in what is remembered; it reaches the optimizer on
    all ranks alike, where a GradScaler skips the step, as in stock DDP. A world of one is stock DDP.

    What a pass taught is kept when a `torch.optim` optimizer has stepped with its means, or another pass adds to them;
    of a pass whose gradients were set to None instead (`zero_grad()`), nothing is. Where no such optimizer steps, every
    pass counts.

    Contract: every rank registers, trains and checkpoints alike.

    Attributes:
        rounds: backward passes averaged so far, those before a checkpoint included.
        failure: what went wrong in the last round, of which DDP tells only the text.
    """

    def __init__(self, plan: Plan, transport: Transport, *, scaler: Scaler | None, seed: int) -> None:
        self.plan = plan
        self.rounds = 0
        self.failure: Exception | None = None
        self._announced_bytes = 0
        self._spared = Spared()
        self._world = transport
        self._counting = Counting(transport)
        self._channel: Transport = self._counting
        self._scale: Callable[[], float] = scaler.get_scale if scaler is not None else lambda: 1.0
        self._seed = seed
        self._names: dict[Tensor, str] = {}
        self._averagers: dict[tuple[str, ...], list[BucketAverager]] = {}
        self._saved: dict[str, Mapping[str, Tensor]] = {}  # for averagers still to be built
        self._under_way: list[BucketAverager] = []
        self._undecided: list[BucketAverager] = []  # of the last pass, until its means are used or dropped
        self._passes_without_step = 0
        self._parameters: dict[str, Tensor] = {}
        self._accumulators: list[
            Node
        ] = []  # autograd keeps them, and their hooks, only while someone else does
        self._handles: list[RemovableHandle] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tightwire-ddp")

    @property
    def sent_bytes(self) -> int:
        """Payload bytes that this rank sent for gradients so far, counted."""
        return self._counting.bytes_sent

    @property
    def planned_bytes(self) -> int:
        """Payload bytes that this rank sends in the rounds begun here, by formula and agreed lengths."""
        return self._announced_bytes - self._spared.num_bytes

    def register(self, ddp: Wrapped) -> None:
        """Has DDP call this hook for every bucket, from the next backward pass on.

        Contract: every rank; blocks until all have arrived.

        Raises:
            AttachError: registered already, or parameters where nothing can be averaged.
            MismatchError: ranks with different plans, seeds, or versions of what messages look like.
        """
        if self._names:
            raise AttachError("this hook is registered already; make one for each DistributedDataParallel.")
        named = dict(ddp.module.named_parameters())
        device_of(named)  # or refused
        settings = {"version of tightwire": own_version(), "plan": self.plan, "seed": self._seed}
        settings["rounds that were made before, as a checkpoint says"] = self.rounds
        require_agreement(self._world, settings | wire_facts([self.plan.compression]))
        where = next(iter(named.values())).device
        self._counting.inner = reaching(self._world, where, "pinned")
        self._channel = self._counting.channel()
        self._names = {parameter: name for name, parameter in named.items()}
        self._parameters = {**named}
        self._watch()
        ddp.register_comm_hook(self, lambda state, bucket: state.run(bucket))

    def configure_variance(self, optimizer: Optimizer) -> None:
        """Tells one of `tightwire.optim` from which rounds its variance learns, for plans such as `onebit-adam`.

        Raises:
            AttachError: an optimizer that cannot train under the plan.
        """
        configure_variance(optimizer, self.plan, lambda: self.rounds)

    def run(self, bucket: GradBucket) -> Future[Tensor]:
        """Averages one bucket; called by DDP.

        Returns:
            What holds the bucket's memory once that is the mean.
        """
        future: Future[Tensor] = Future()
        if self._world.size == 1:
            future.set_result(bucket.buffer())
            return future
        if bucket.index() == 0:
            self.rounds += 1
        names = [self._names[parameter] for parameter in bucket.parameters()]
        gradients = dict(zip(names, bucket.gradients(), strict=True))
        job = _Job(
            averagers=self._averagers_of(bucket.index(), gradients),
            gradients=gradients,
            buffer=bucket.buffer(),
            is_last=bucket.is_last(),
            now=Round(number=self.rounds, seed=self._seed + self.rounds, scale=self._scale()),
            filled=device_named(bucket.buffer().device).mark(bucket.buffer().device),
            future=future,
        )
        self._announced_bytes += sum(averager.bytes_in(self.rounds) for averager in job.averagers)
        self._thread.submit(self._serve, job)
        return future

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's part of a checkpoint, by parameter name; tensors are copies."""
        self._decide()
        return {
            "version": 1,
            "plan": str(self.plan),
            "rank": self._world.rank,
            "workers": self._world.size,
            "rounds": self.rounds,
            "memory": {**self._saved, **memory(self._all())},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` returned on this rank, before or after `register`, between two steps.

        Another number of workers loads what all ranks returned, and each takes up the mean, so that what is owed to the
        mean stays owed: `hook.load_state_dict({"parts": {rank: state, …}})`. From one rank's state alone only rounds
        are counted on, and leftovers and momenta are dropped, with a warning. Memory that does not fit the plan is an
        AttachError, in the next backward pass at the latest.

        Raises:
            AttachError: a checkpoint of another version or rank.
            MismatchError: states that were not saved together.
        """
        parts: Mapping[int, Mapping[str, Any]] = state.get("parts") or {state.get("rank", 0): state}
        rank, size = self._world.rank, self._world.size
        some = parts.get(rank) or next(iter(parts.values()))
        if some.get("version") != 1 or (some["workers"] == size and some["rank"] != rank):
            raise AttachError(
                f"this is version {some.get('version')} of a hook's state, of rank {some.get('rank')}; rank "
                f"{rank} loads version 1 of its own. Every rank saves its hook.state_dict(), not rank 0 for all, and "
                "loads its own."
            )
        told = {n: f"of {part['workers']} workers after round {part['rounds']}" for n, part in parts.items()}
        require_alike("states are", told)
        self.rounds = some["rounds"]
        self._undecided.clear()
        self._averagers.clear()
        if some["workers"] == size:
            self._saved = dict(some["memory"])
        elif len(parts) == some["workers"]:
            self._saved = dict(merged([part["memory"] for part in parts.values()]))
        else:
            self._saved = {}
            warnings.warn(
                f"the checkpoint was made by {some['workers']} workers, this run has {size}, and only the state of "
                f"{name_ranks(parts)} was loaded: leftovers and momenta are dropped, and what they held of old "
                "gradients is lost. The states of all keep them; a Trainer's folder has them in tightwire_RANK.pt, of "
                "which none may be missing then.",
                stacklevel=2,
            )

    def close(self) -> None:
        """Ends the thread. Local; training with the hook is over then."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._thread.shutdown(wait=False)

    def _serve(self, job: _Job) -> None:
        device = device_named(job.buffer.device)
        try:
            with device.side(job.buffer.device):
                device.follow(job.filled)
                for averager in job.averagers:
                    mine = {name: job.gradients[name] for name in averager.bucket.views}
                    averager.bucket.pack(mine)
                    averager.run(job.now)
                    averager.bucket.unpack(mine)
                self._under_way += job.averagers
                if job.is_last:
                    self._end_round()
                device.wait(device.mark(job.buffer.device))  # DDP reads the buffer on streams of its own
            job.future.set_result(job.buffer)
        except Exception as failure:  # whatever it is, backward must learn of it
            self._under_way.clear()
            self.failure = failure
            cast(Any, job.future).set_exception(failure)

    def _end_round(self) -> None:
        under_way, self._under_way = self._under_way, []
        if all(averager.finite for averager in under_way):
            self._undecided = under_way

    def _watch(self) -> None:
        """Sees optimizers step, and passes begin."""
        if self._world.size == 1:
            return
        this = weakref.ref(self)

        def stepped(optimizer: Optimizer, args: object, kwargs: object) -> None:
            if (hook := this()) is not None:
                hook._hear_step(optimizer)

        def begins(gradients: object) -> None:
            if (hook := this()) is not None and hook._undecided:
                hook._hear_pass()

        self._handles.append(register_optimizer_step_post_hook(stepped))
        for parameter in self._parameters.values():
            if parameter.requires_grad:
                self._accumulators.append(accumulator_of(parameter))
                self._handles.append(self._accumulators[-1].register_prehook(begins))

    def _hear_step(self, optimizer: Optimizer) -> None:
        stepped = {self._names.get(p) for group in optimizer.param_groups for p in group["params"]}
        if not stepped.isdisjoint(self._parameters):
            self._passes_without_step = 0
            self._decide(lambda names: not stepped.isdisjoint(names))

    def _hear_pass(self) -> None:
        """Hears, before autograd adds to any gradient, that the last pass was not stepped with."""
        self._passes_without_step += 1
        if self._passes_without_step > MOST_DROPPED:  # something else than torch.optim updates the parameters
            for averager in self._undecided:
                averager.keep()
            self._undecided.clear()
        self._decide()
        self._undecided.clear()

    def _decide(self, concerns: Callable[[Iterable[str]], bool] = lambda names: True) -> None:
        """Keeps what the last pass taught, of buckets whose gradients are still there."""
        undecided, self._undecided = self._undecided, []
        for averager in undecided:
            names = averager.bucket.views
            if not concerns(names):
                self._undecided.append(averager)
            elif any(self._parameters[name].grad is not None for name in names):
                averager.keep()

    def _averagers_of(self, index: int, gradients: Mapping[str, Tensor]) -> list[BucketAverager]:
        """Returns what averages a bucket of these gradients; DDP may have cut its buckets anew."""
        names = tuple(gradients)
        if names not in self._averagers:
            self._put_aside(names)
            self._averagers[names] = self._build_all(index, gradients)
        return self._averagers[names]

    def _put_aside(self, names: Sequence[str]) -> None:
        """Takes apart the old buckets of these tensors, which are idle: none of them is in this round."""
        for old in [cut for cut in self._averagers if not set(cut).isdisjoint(names)]:
            self._saved |= memory(self._averagers.pop(old))

    def _build_all(self, index: int, gradients: Mapping[str, Tensor]) -> list[BucketAverager]:
        """Builds an averager for each way in which tensors of one bucket travel."""
        ways: dict[tuple[CompressionAnswer, ...], list[int]] = {}
        for place, tensor in enumerate(gradients.values()):
            way = compression_for(self.plan.compression, tensor.numel() * tensor.itemsize, tensor.dim())
            ways.setdefault(way, []).append(place)
        averagers = []
        partition = list(ways.values())
        for way, layout in zip(ways, plan_layout(gradients, partition), strict=True):
            build = functools.partial(self._build, layout, index)
            averagers.append(
                BucketAverager(Bucket(layout), way, build, workers=self._world.size, spared=self._spared)
            )
        saved: Named = {name: self._saved.pop(name) for name in gradients if name in self._saved}
        if saved:
            load_memory(averagers, saved)
        return averagers

    def _build(self, layout: BucketLayout, number: int, sender: Sender) -> Averager:
        architecture = self.plan.architecture
        return build_averager(architecture, sender, self._channel, bucket=layout, number=number)

    def _all(self) -> list[BucketAverager]:
        return [averager for averagers in self._averagers.values() for averager in averagers]

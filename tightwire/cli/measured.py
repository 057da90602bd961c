"""What `plan` and `simulate` share: measured facts from files or from round numbers, and how rankings print."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from tightwire.cli.table import print_rows, say, say_json
from tightwire.cluster import PAYLOAD_SHARE, Cluster, Prices
from tightwire.cluster.limits import MAX_LATENCY_S, MAX_WORKERS, require_plausible, require_range
from tightwire.cluster.presets import PRESETS, preset
from tightwire.cluster.prices import MOST_PRICE
from tightwire.cluster.workers import WorkerKind, parse_kinds
from tightwire.errors import FileError
from tightwire.lab import Topology
from tightwire.planner.sweep import SLOWEST_BYTES_PER_S
from tightwire.profile import Profile
from tightwire.profile.cost import MAX_SECONDS
from tightwire.profile.devices import DEVICES, SOME_GPU, derive, device
from tightwire.profile.models import model_shape
from tightwire.simulate import Prediction
from tightwire.units import (
    of_option,
    parse_bytes,
    parse_rate,
    parse_seconds,
    print_ms,
    print_rate,
    print_size,
)
from tightwire.ways import Over

LAYERS = 48
DEFAULT_LATENCY = "50us"
PRECISIONS = {2: "half", 4: "single"}
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Starting one kernel takes a few of them.
LEAST_COMPUTE_S = 1e-6
# Of a table; all are in the JSON.
MOST_ROWS = 12
ASK_MODEL = (
    "write --profile FILE, or --model resnet50 --device v100 --batch 64, or --gradients 100MB --compute 300ms"
)
ASK_CLUSTER = (
    "write --cluster FILE, or --hardware aws-p4d:4, or --topology nodes=2x4,inside=10gbit,across=1gbit, or --workers 4 "
    "--bandwidth 1gbit"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user wrote of the model and of the cluster; None: nothing."""

    profile: pathlib.Path | None = None
    gradients: str | None = None
    compute: str | None = None
    model: str | None = None
    device: str | None = None
    batch: int | None = None
    length: int | None = None
    dtype: str | None = None
    cluster: pathlib.Path | None = None
    workers: int | None = None
    bandwidth: str | None = None
    latency: str | None = None
    hardware: str | None = None
    topology: str | None = None
    kinds: str | None = None
    over: str | None = None
    price: float | None = None
    price_per_gb: float | None = None

    def read_profile(self) -> Profile:
        """Returns the profile of a file, of a known model on a known device, or of two round numbers.

        Raises:
            FileError: options that do not go together, or a value that cannot be.
            UnitError: a number that cannot be read.
        """
        ways = {
            "--profile": self.profile is not None,
            "--model": self.model is not None,
            "--gradients and --compute": self.gradients is not None or self.compute is not None,
        }
        _require_one("the model", ways, ASK_MODEL)
        if self.profile is not None:
            self._refuse("--profile FILE says it", "device", "batch", "length", "dtype")
            return Profile.read(self.profile)
        if self.dtype is not None and self.dtype not in ITEMSIZES:
            raise FileError(f"--dtype {self.dtype} is none of {', '.join(ITEMSIZES)}.")
        return self._known_model(self.model) if self.model is not None else self._round_numbers()

    def read_cluster(self) -> Cluster:
        """Returns the cluster as `--cluster`, `--hardware`, `--topology` or round numbers say, at its price.

        Raises:
            FileError: options that do not go together, or a value that cannot be.
            LabError: a topology that cannot be read.
            UnitError: a number that cannot be read.
        """
        kinds = self._kinds()
        found = self._cluster(sum(kind.workers for kind in kinds) or None)
        if kinds:
            if found.kinds:
                raise FileError("--kinds: the cluster file has kinds; leave out one of the two.")
            found = dataclasses.replace(found, kinds=kinds)
        if found.device_memory_bytes is None and self.device in DEVICES:
            found = dataclasses.replace(found, device_memory_bytes=DEVICES[self.device].memory_bytes)
        if self.over is not None:
            over = next((way for way in get_args(Over) if way == self.over), None)
            if over is None:
                raise FileError(f"--over {self.over} is none of {', '.join(get_args(Over))}.")
            found = dataclasses.replace(found, over=over)
        if self.price is None and self.price_per_gb is None:
            return found
        for option, price in (("--price", self.price), ("--price-per-gb", self.price_per_gb)):
            require_range(option, price or 0.0, 0.0, MOST_PRICE)
        prices = found.prices or Prices()
        if self.price is not None:  # instead of what the file or the hardware said, wherever that came from
            prices = Prices(per_worker_hour=self.price, per_gb_across=prices.per_gb_across)
            alike = tuple(dataclasses.replace(kind, price_per_hour=None) for kind in found.kinds)
            found = dataclasses.replace(found, kinds=alike)
        if self.price_per_gb is not None:
            prices = dataclasses.replace(prices, per_gb_across=self.price_per_gb)
        return dataclasses.replace(found, prices=prices)

    def _kinds(self) -> tuple[WorkerKind, ...]:
        """Returns the kinds of workers; a known device computes as fast, beside that of --device, as data sheets say.

        Raises:
            FileError: kinds that cannot be read.
        """
        if self.kinds is None:
            return ()
        parsed, told_speeds = parse_kinds(self.kinds)
        kinds = tuple(
            dataclasses.replace(kind, bandwidth_bytes_per_s=kind.bandwidth_bytes_per_s * PAYLOAD_SHARE)
            if kind.bandwidth_bytes_per_s
            else kind
            for kind in parsed
        )
        if self.model is None or self.batch is None or self.device not in DEVICES:
            return kinds
        shape, batch = model_shape(self.model, self.length), self.batch
        base_s = derive(shape, device(self.device), batch).compute_s
        return tuple(
            dataclasses.replace(kind, speed=base_s / derive(shape, device(kind.name), batch).compute_s)
            if kind.name in DEVICES and kind.name not in told_speeds
            else kind
            for kind in kinds
        )

    def _cluster(self, of_kinds: int | None) -> Cluster:
        """Returns the cluster of a file, of known hardware, of a topology, or of round numbers.

        Args:
            of_kinds: how many workers the kinds are; instead of --workers, where that is not told.

        Raises:
            FileError: options that do not go together, or a value that cannot be.
            LabError: a topology that cannot be read.
            UnitError: a number that cannot be read.
        """
        ways = {
            "--cluster": self.cluster is not None,
            "--hardware": self.hardware is not None,
            "--topology": self.topology is not None,
            "--workers and --bandwidth": self.cluster is None
            and self.hardware is None
            and self.topology is None
            and (self.workers is not None or self.bandwidth is not None),
        }
        _require_one("the cluster", ways, ASK_CLUSTER)
        if self.cluster is not None:
            self._refuse("--cluster FILE says it", "workers", "bandwidth", "latency")
            return told(Cluster.read(self.cluster))
        if self.hardware is not None:
            self._refuse("--hardware says it", "workers", "bandwidth", "latency")
            return _hardware(self.hardware)
        latency_s = of_option("--latency", parse_seconds, self.latency or DEFAULT_LATENCY)
        if latency_s > MAX_LATENCY_S:
            raise FileError(
                f"--latency {self.latency}: a message takes {MAX_LATENCY_S:g} s at most; write 50us."
            )
        if self.topology is not None:
            self._refuse("--topology says it", "workers", "bandwidth")
            return Topology.parse(self.topology).cluster(latency_s)
        workers = of_kinds if self.workers is None else self.workers
        if workers is None or self.bandwidth is None:
            missing = "--workers" if workers is None else "--bandwidth"
            raise FileError(f"the cluster is not given: {missing} is missing; {ASK_CLUSTER}.")
        require_range("--workers", workers, 1, MAX_WORKERS)
        rate = of_option("--bandwidth", parse_rate, self.bandwidth)
        if rate <= 0:
            raise FileError(f"--bandwidth {self.bandwidth}: such a line never moves anything; write 10gbit.")
        if rate < SLOWEST_BYTES_PER_S:
            raise FileError(
                f"--bandwidth {self.bandwidth} is {8 * rate:g} bits a second; write the unit, as in "
                "10gbit or 25MB/s."
            )
        require_plausible("--bandwidth", rate)
        if self.model is not None and workers > 1:
            say(
                f"cluster: each of {workers} workers has a line of its own, of {print_rate(rate * PAYLOAD_SHARE)} of "
                "payload; where those of a node share one: --topology nodes=2x4,inside=100gbit,across=10gbit.",
                err=True,
            )
        return Cluster.uniform(workers, rate * PAYLOAD_SHARE, latency_s)

    def _known_model(self, model: str) -> Profile:
        if self.device in (None, "cpu", "gpu") or self.batch is None:
            ways = {
                f"--device with one of {', '.join(DEVICES)}": self.device in (None, "cpu", "gpu"),
                "--batch, as in --batch 32": self.batch is None,
            }
            missing = ", and ".join(way for way, is_missing in ways.items() if is_missing)
            raise FileError(f"--model {model} is derived for a device and a batch: write {missing}.")
        assert self.device is not None
        shape = model_shape(model, self.length)
        on, dtype = device(self.device), self.dtype or "float32"
        say(
            f"model: {model}, a sample is {shape.sample}; it computes in {PRECISIONS[on.value_bytes]} precision, at "
            f"{on.efficiency:.0%} of {on.name}'s {on.flops_per_s / 1e12:g} Tflop/s; gradients are {dtype}.",
            err=True,
        )
        return derive(shape, on, self.batch, itemsize=ITEMSIZES[dtype])

    def _round_numbers(self) -> Profile:
        if self.gradients is None or self.compute is None:
            missing = "--gradients" if self.gradients is None else "--compute"
            raise FileError(f"the model is not given: {missing} is missing; {ASK_MODEL}.")
        self._refuse("it needs --model", "length")
        if self.device not in (None, "cpu", "gpu", *DEVICES):
            raise FileError(f"--device {self.device} is none of cpu, gpu, {', '.join(DEVICES)}.")
        compute_s = of_option("--compute", parse_seconds, self.compute)
        num_bytes = of_option("--gradients", parse_bytes, self.gradients)
        if num_bytes and self.gradients.strip().isdigit():
            raise FileError(f"--gradients {self.gradients} has no unit; write {self.gradients.strip()}MB.")
        itemsize = ITEMSIZES[self.dtype or "float32"]
        if compute_s < LEAST_COMPUTE_S:
            raise FileError(f"--compute {self.compute}: a step takes a microsecond at least; write 300ms.")
        if compute_s > MAX_SECONDS:
            raise FileError(
                f"--compute {self.compute}: a step takes {MAX_SECONDS:,.0f} s at most; write 300ms."
            )
        if num_bytes < itemsize:
            raise FileError(f"--gradients {self.gradients}: there is nothing to exchange; write 100MB.")
        layers = min(LAYERS, num_bytes // itemsize)
        profile = Profile.uniform(
            layers=layers,
            numel_per_layer=num_bytes // itemsize // layers,
            forward_s=compute_s / 3,
            backward_s=compute_s * 2 / 3,
        )
        parameters = tuple(dataclasses.replace(p, itemsize=itemsize) for p in profile.parameters)
        profile = dataclasses.replace(
            profile, parameters=parameters, samples=self.batch or 0, device=self.device or "gpu"
        )
        if self.device == "cpu":
            return profile
        return DEVICES.get(self.device or "", SOME_GPU).priced(profile)

    def _refuse(self, why: str, *names: str) -> None:
        given = [f"--{name}" for name in names if vars(self)[name] is not None]
        if given:
            raise FileError(f"{' and '.join(given)}: {why}; leave out one of the two.")


def _require_one(what: str, ways: dict[str, bool], ask: str) -> None:
    given = [way for way, is_given in ways.items() if is_given]
    if not given:
        raise FileError(f"{what} is not given: {ask}.")
    if len(given) > 1:
        raise FileError(f"{what} is given twice, by {' and by '.join(given)}: keep one of them.")


def _hardware(text: str) -> Cluster:
    name, _, nodes = text.partition(":")
    if name not in PRESETS:
        raise FileError(f"--hardware {text}: {name!r} is not known; known: {', '.join(PRESETS)}.")
    if not (nodes or "1").isdigit():
        raise FileError(f"--hardware {text}: write NAME:NODES, as in aws-p4d:4.")
    most = MAX_WORKERS // PRESETS[name].devices
    if not 1 <= int(nodes or "1") <= most:
        raise FileError(f"--hardware {text}: write 1 to {most:,} nodes, as in {name}:4.")
    return preset(name, int(nodes or "1"))


def told(cluster: Cluster) -> Cluster:
    """Tells what a reader of this cluster must know; returns it."""
    for remark in cluster.remarks:
        say(f"cluster: {remark}", err=True)
    return cluster


def print_ranking(rows: Sequence[Prediction], why: Sequence[str], as_json: bool) -> None:
    """Prints predictions as a table with sentences, or as one line of JSON."""
    if as_json:
        say_json({"ranking": [row.values() for row in rows], "why": list(why)})
        return
    print_table(rows)
    say(*why)


def print_table(
    rows: Sequence[Prediction], columns: Mapping[str, Sequence[str]] | None = None, caption: str = ""
) -> None:
    """Prints the first predictions as a table.

    Args:
        rows: the chosen one first, if one was chosen.
        columns: further cells of each row, by the heads of their columns.
        caption: what those mean.
    """
    columns = columns or {}
    head = ["plan", "step", "from", "to", "waiting", "sent", "bound by", *columns]
    cells = []
    for place, row in enumerate(rows[:MOST_ROWS]):
        times = map(print_ms, (row.step_s, row.low_s, row.high_s, row.exposed_s))
        beyond = [column[place] for column in columns.values()]
        cells.append([str(row.plan), *times, print_size(row.bytes_per_step), row.bound_by, *beyond])
    more = f"{len(rows) - MOST_ROWS} more; --json lists all." if len(rows) > MOST_ROWS else ""
    captions = ["From and to: the step's 80 % interval.", caption, more]
    print_rows(head, cells, caption=" ".join(filter(None, captions)))

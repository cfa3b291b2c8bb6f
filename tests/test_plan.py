from __future__ import annotations

import itertools
import math
import re
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from svision_dask.backend import PROCESS_BYTES
from svision_dask.cutting import ENOUGH_REGIONS
from svision_dask.errors import PlanError
from svision_dask.geometry import SPATIAL, Grid, Regions
from svision_dask.network.architecture import architecture
from svision_dask.plan import LIGHT_BYTES, MORE_HALO, Plan, halved, largest_tile, plan_enhancement, tile_chunks
from svision_dask.volume import Volume, read_mirrored
from svision_dask.wishes import Machine, Wishes
from svision_dask.workload import SEATS

GIB = 2**30
BYTES_PER_VOXEL = 97
ROOMY = Machine(cores=4, memory_bytes=64 * GIB)


def grid_of(axes: str, shape: tuple[int, ...]) -> Grid:
    n = len(axes)
    return Grid(axes=axes, shape=shape, spacing=(1.0,) * n, origin=(0.0,) * n, units=(None,) * n)


def plan_of(
    axes: str,
    shape: tuple[int, ...],
    *,
    factor: tuple[int, ...] | None = None,
    halo: tuple[int, int, int] = (5, 5, 5),
    machine: Machine = ROOMY,
    wishes: Wishes | None = None,
    itemsize: int = 2,
    stored: tuple[int, ...] | None = None,
) -> Plan:
    spatial = tuple(h if axis in axes else 0 for axis, h in zip(SPATIAL, halo, strict=True))
    return plan_enhancement(
        grid_of(axes, shape),
        factor=factor or tuple(2 if axis in SPATIAL else 1 for axis in axes),
        halo=spatial,
        itemsize=itemsize,
        dtype="float32",
        dtype_itemsize=4,
        tile_bytes=lambda tile: BYTES_PER_VOXEL * math.prod(t + 2 * h for t, h in zip(tile, spatial, strict=True)),
        machine=machine,
        wishes=wishes,
        stored=stored,
    )


@st.composite
def requests(draw: st.DrawFn) -> dict:
    """Small volumes, with chunks, shards and tiles small enough that there are several of each."""
    axes = draw(st.sampled_from(["yx", "zyx", "czyx", "tcyx", "tczyx"]))
    factor = tuple(draw(st.sampled_from([1, 2, 4])) if axis in SPATIAL else 1 for axis in axes)
    assume(max(factor) > 1)
    shape = tuple(draw(st.integers(1, 20 if axis in SPATIAL else 2)) for axis in axes)
    spatial = [axis for axis in axes if axis in SPATIAL]

    def some(values: st.SearchStrategy[int]) -> dict[str, int] | None:
        return draw(st.none() | st.dictionaries(st.sampled_from(spatial), values, max_size=3))

    chunk = some(st.sampled_from([1, 3, 4, 8, 12]))
    wishes = Wishes(
        tile=some(st.integers(1, 20)),
        chunk=chunk,
        shard=some(st.sampled_from([8, 12, 24, 48])),
        workers=draw(st.none() | st.integers(1, 5)),
        worker_memory_bytes=draw(st.none() | st.just(GIB)),
        version=draw(st.sampled_from(["0.4", "0.5"])),
    )
    machine = Machine(cores=draw(st.integers(1, 8)), memory_bytes=draw(st.sampled_from([GIB // 2, GIB, 8 * GIB])))
    halo = draw(st.tuples(*[st.integers(0, 7)] * 3))
    stored = tuple(draw(st.integers(1, 9)) if axis in SPATIAL else 1 for axis in axes)
    given = {"axes": axes, "shape": shape, "factor": factor, "halo": halo, "machine": machine, "wishes": wishes}
    return {**given, "stored": stored}


def planned(request: dict) -> Plan:
    """The plan; a refusal must be one line that says what to do, and is then no example."""
    try:
        return plan_of(**request)
    except PlanError as error:
        refusal = str(error)
    assert re.fullmatch(r"[^\n]*\d[^\n]*Use [^\n]*--[^\n]*\.", refusal)
    assume(False)
    raise AssertionError


@given(request=requests())
@settings(deadline=None, max_examples=150)
def test_regions_cover_every_output_voxel_once_in_whole_shards_and_whole_coarse_voxels(request):
    plan = planned(request)
    shape = plan.fine.shape
    assert shape == tuple(n * f for n, f in zip(request["shape"], request["factor"], strict=True))
    covered = np.zeros(shape, np.uint8)
    unit = plan.shard or plan.chunk
    for region in plan.regions:
        covered[region.box] += 1
        for a, b, u, c, f, n in zip(region.start, region.stop, unit, plan.chunk, plan.factor, shape, strict=True):
            assert a < b <= n
            assert a % u == a % c == a % f == b % f == 0
            assert b == n or (b % u == b % c == 0)
    assert (covered == 1).all()
    if plan.shard is not None:
        assert plan.version == "0.5"
        assert all(s % c == 0 for s, c in zip(plan.shard, plan.chunk, strict=True))


@given(request=requests())
@settings(deadline=None, max_examples=150)
def test_what_was_wished_is_planned_and_fits_the_machine(request):
    plan, wishes, machine = planned(request), request["wishes"], request["machine"]
    assert plan.worker_bytes <= plan.memory_bytes
    assert plan.workers <= len(plan.regions)
    if wishes.workers is None:
        assert plan.workers * plan.memory_bytes <= max(machine.memory_bytes, plan.memory_bytes)
        assert plan.workers * plan.threads <= machine.cores
    else:
        assert plan.workers == min(wishes.workers, len(plan.regions))
    for name, planned_lengths in (("tile", plan.tile), ("chunk", plan.chunk), ("shard", plan.region)):
        for axis, length in (getattr(wishes, name) or {}).items():
            got = planned_lengths[request["axes"].index(axis)]
            assert got == length or got < length  # never more; less where the volume ends before


@given(request=requests())
@settings(deadline=None, max_examples=100)
def test_the_bytes_to_read_and_the_voxels_to_compute_are_those_of_every_region_added_up(request):
    plan = planned(request)

    class Counting:
        shape, dtype, voxels = plan.coarse.shape, np.dtype(np.uint16), 0

        def __getitem__(self, box):
            sides = zip(box, self.shape, request["stored"], strict=True)
            self.voxels += math.prod(min(-(-b.stop // u) * u, n) - b.start // u * u for b, n, u in sides)
            return np.zeros([side.stop - side.start for side in box], self.dtype)

    source = Counting()
    volume = Volume.from_source(source, plan.coarse, chunks=plan.coarse.shape)
    entered = 0
    for region in plan.regions:
        start = [a // f for a, f in zip(region.start, plan.factor, strict=True)]
        stop = [b // f for b, f in zip(region.stop, plan.factor, strict=True)]
        tiles = [-(-(b - a) // t) for a, b, t in zip(start, stop, plan.tile, strict=True)]
        low = tuple(a - h for a, h in zip(start, plan.halo, strict=True))
        high = tuple(a + k * t + h for a, k, t, h in zip(start, tiles, plan.tile, plan.halo, strict=True))
        read_mirrored(volume, low, high)
        entered += math.prod(tiles) * math.prod(t + 2 * h for t, h in zip(plan.tile, plan.halo, strict=True))
    assert plan.read_bytes == source.voxels * 2
    assert plan.redundancy == pytest.approx(entered / math.prod(plan.coarse.shape))
    assert plan.write_bytes == math.prod(plan.fine.shape) * 4


def test_tiles_start_anew_in_every_region():
    # Per axis: two regions of 6 coarse voxels, each two tiles of 4 and a halo of 1.
    wishes = Wishes(shard=dict.fromkeys("zyx", 12), tile=dict.fromkeys("zyx", 4))
    plan = plan_of("zyx", (12, 12, 12), halo=(1, 1, 1), wishes=wishes)
    assert (plan.region, plan.tile) == ((12, 12, 12), (4, 4, 4))
    assert plan.redundancy == pytest.approx((2 * 2 * (4 + 2) / 12) ** 3)
    # Read are 0 … 8 for the first, with the rest of its second tile, and 5 … 11 for the second, then mirrored.
    assert plan.read_bytes == 2 * (9 + 7) ** 3


def test_a_worker_holds_the_process_its_buffers_and_one_forward_pass():
    # One region, one tile: 10×10×10 coarse voxels with 5 of halo on each side.
    plan = plan_of("zyx", (10, 10, 10), itemsize=7, machine=Machine(cores=1, memory_bytes=GIB))
    assert plan.tile == (10, 10, 10)
    assert plan.worker_bytes == PROCESS_BYTES + 2 * 20**3 * 7 + 2 * 20**3 * 4 + BYTES_PER_VOXEL * 20**3


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    halo=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_every_forward_pass_sees_a_tile_and_its_halo(shape, tile, halo):
    for n, t, h, chunks in zip(shape, tile, halo, tile_chunks(shape, tile, halo), strict=True):
        count = -(-n // t)
        assert sum(chunks) == count * t + 2 * h
        assert len(chunks) == count
        for i, chunk in enumerate(chunks):
            assert chunk + h * (i > 0) + h * (i < count - 1) == t + 2 * h
        # A neighbour must have the halo to give: always for tiles as long as their halo, and where there are two.
        if t >= h or count <= 2:
            assert count == 1 or min(chunks) >= h


@given(shape=st.tuples(*[st.integers(1, 30)] * 3), unit=st.tuples(*[st.integers(1, 12)] * 3))
def test_a_region_is_found_by_its_number(shape, unit):
    regions = Regions(shape=shape, unit=unit)
    boxes = list(regions)
    assert [region.index for region in boxes] == list(range(len(regions)))
    assert all(regions.at(region.index) == region for region in boxes)
    starts = itertools.product(*(range(0, n, u) for n, u in zip(shape, unit, strict=True)))  # the last axis fastest
    assert [region.start for region in boxes] == list(starts)
    assert all(b - a <= u for region in boxes for a, b, u in zip(region.start, region.stop, unit, strict=True))


@given(
    limit=st.tuples(*[st.integers(1, 300)] * 3),
    halo=st.tuples(*[st.integers(0, 20)] * 3),
    voxels=st.integers(1, 10**6),
)
def test_the_tile_is_halved_until_it_fits_but_never_below_its_halo(limit, halo, voxels):
    tile = largest_tile(limit, halo, lambda t: math.prod(t) <= voxels)
    if math.prod(limit) <= voxels:
        assert tile == limit
    elif tile is not None:
        assert math.prod(tile) <= voxels < math.prod(limit)
        assert all(t == n or t >= max(h, 1) for t, n, h in zip(tile, limit, halo, strict=True))
    else:  # no axis could have been halved any more
        assert math.prod(min(n, max(2 * h - 1, 1)) if h else n for n, h in zip(limit, halo, strict=True)) > voxels


@given(
    shape=st.tuples(*[st.integers(100, 2000)] * 3),
    halo=st.tuples(*[st.integers(1, 20)] * 3),
    shard=st.sampled_from([128, 256, 512]),
)
@settings(deadline=None)
def test_a_processor_takes_tiles_that_are_light_unless_that_makes_halos_much_of_the_work(shape, halo, shard):
    wishes = Wishes(shard=dict.fromkeys("zyx", shard), chunk=dict.fromkeys("zyx", 64))
    large = plan_of("zyx", shape, halo=halo, wishes=replace(wishes, device="cuda", gpu_bytes=2**40)).tile
    tile = plan_of("zyx", shape, halo=halo, wishes=wishes).tile

    def haloed(tile: tuple[int, ...]) -> int:
        return math.prod(t + 2 * h for t, h in zip(tile, halo, strict=True))

    def halo_share(tile: tuple[int, ...]) -> float:
        return haloed(tile) / math.prod(tile)

    assert halo_share(tile) <= MORE_HALO * halo_share(large)
    if BYTES_PER_VOXEL * haloed(large) <= LIGHT_BYTES:
        assert tile == large
    if BYTES_PER_VOXEL * haloed(tile) > LIGHT_BYTES:
        smaller = halved(tile, halo)
        assert smaller is None or halo_share(smaller) > MORE_HALO * halo_share(large)


def test_without_wishes_chunks_and_shards_are_cubes_and_planes():
    plan = plan_of("czyx", (2, 500, 500, 500))
    assert (plan.chunk, plan.shard) == ((1, 64, 64, 64), (1, 256, 256, 256))
    assert plan_of("yx", (30_000, 30_000)).shard == (4096, 4096)


@pytest.mark.parametrize("shape", [(100, 100, 100), (33, 500, 40), (7, 7, 7)])
def test_small_volumes_are_cut_so_that_there_is_work_for_several_workers(shape):
    plan = plan_of("zyx", shape)
    largest = len(Regions(shape=plan.fine.shape, unit=plan.chunk))
    assert len(plan.regions) >= min(ENOUGH_REGIONS, largest)


def test_chunks_follow_small_shards_and_shards_follow_odd_chunks():
    plan = plan_of("zyx", (100, 100, 100), wishes=Wishes(shard={"z": 32}))
    assert (plan.chunk[0], plan.region[0]) == (32, 32)
    plan = plan_of("zyx", (400, 400, 400), factor=(4, 4, 4), wishes=Wishes(chunk={"y": 30}))
    assert plan.chunk[1] == 30
    assert plan.region[1] % 60 == 0  # whole chunks of 30, whole coarse voxels of 4


def numbers(message: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", message)]


def test_too_little_memory_is_refused_with_what_is_needed_and_what_there_is():
    machine = Machine(cores=2, memory_bytes=GIB // 4)
    with pytest.raises(PlanError, match=r"one worker needs (\d+) MiB .* it may use 256 MiB\. Use .*--memory") as caught:
        plan_of("zyx", (500, 500, 500), machine=machine)
    needed = numbers(str(caught.value))[0]
    roomier = Machine(cores=2, memory_bytes=int((needed + 1) * 2**20))
    assert plan_of("zyx", (500, 500, 500), machine=roomier).worker_bytes > machine.memory_bytes


def test_a_tile_that_does_not_fit_is_refused_also_where_a_smaller_one_would():
    machine = Machine(cores=1, memory_bytes=GIB)
    assert plan_of("zyx", (500, 500, 500), machine=machine).worker_bytes <= GIB
    with pytest.raises(PlanError, match=r"in tiles of \(500, 128, 128\).* it may use 1024 MiB"):
        plan_of("zyx", (500, 500, 500), machine=machine, wishes=Wishes(shard={"z": 1024}, tile={"z": 600}))


def test_a_tile_with_a_tensor_too_large_is_refused_with_the_limit():
    design = architecture("fast", (2, 2, 2), "zyx")
    with pytest.raises(PlanError, match=rf"reaches the limit of {2**31}.*Use smaller --shards or --tile"):
        plan_enhancement(
            grid_of("zyx", (1000, 1000, 1000)),
            factor=(2, 2, 2),
            halo=design.halo,
            itemsize=1,
            dtype="uint8",
            dtype_itemsize=1,
            tile_bytes=design.tile_bytes,
            machine=Machine(cores=1, memory_bytes=10**12),
            wishes=Wishes(shard=dict.fromkeys("zyx", 1024), tile=dict.fromkeys("zyx", 512)),
        )


def test_where_memory_is_short_fewer_processes_share_it_and_the_cores():
    shape = (500, 500, 500)
    plan = plan_of("zyx", shape, machine=Machine(cores=16, memory_bytes=6 * GIB))
    assert 1 <= plan.workers < 16
    assert plan.threads == 16 // plan.workers > 1
    assert plan.redundancy < 1.25 * plan_of("zyx", shape, machine=Machine(cores=1, memory_bytes=6 * GIB)).redundancy
    assert plan_of("zyx", shape, machine=Machine(cores=16, memory_bytes=64 * GIB)).workers == 16
    with pytest.raises(PlanError, match="it may use 384 MiB"):
        plan_of("zyx", shape, machine=Machine(cores=16, memory_bytes=6 * GIB), wishes=Wishes(workers=16))


def test_a_worker_holds_several_regions_where_there_is_memory_and_its_tile_is_the_same():
    def plan(memory: int, **wishes: int) -> Plan:
        return plan_of("zyx", (500, 500, 500), machine=Machine(cores=1, memory_bytes=memory), wishes=Wishes(**wishes))

    roomy, single = plan(64 * GIB), plan(64 * GIB, seats=1)
    assert (roomy.seats, single.seats) == (SEATS, 1)
    buffers = (roomy.worker_bytes - single.worker_bytes) // (SEATS - 1)
    assert buffers >= 2 * 256**3 * 4  # the output twice
    for memory, seats in ((single.worker_bytes, 1), (single.worker_bytes + buffers, 2)):
        short = plan(memory)
        assert (short.seats, short.tile, short.worker_bytes) == (seats, single.tile, memory)
    assert plan_of("zyx", (50, 50, 50), wishes=Wishes(shard=dict.fromkeys("zyx", 128))).seats == 1  # the only region


def test_regions_grow_where_that_spares_reading_as_far_as_memory_and_work_for_all_allow():
    shard = dict.fromkeys("zyx", 256)

    def plan(memory: int, size: int = 2000, **wishes: object) -> Plan:
        asked, machine = Wishes(shard=shard, **wishes), Machine(cores=2, memory_bytes=memory)
        return plan_of("zyx", (size,) * 3, stored=(128, 128, 128), machine=machine, wishes=asked)

    fixed, grown = plan(64 * GIB, region=shard), plan(64 * GIB)
    assert (fixed.region, fixed.shard) == (fixed.shard, grown.shard) == ((256, 256, 256),) * 2
    assert fixed.times_read > 20
    assert grown.times_read < fixed.times_read / 3
    assert all(r % s == 0 for r, s in zip(grown.region, grown.shard, strict=True))
    assert (grown.tile, grown.redundancy, grown.seats) == (fixed.tile, fixed.redundancy, fixed.seats)
    assert fixed.worker_bytes < grown.worker_bytes <= grown.memory_bytes
    assert plan(2 * fixed.worker_bytes).region == fixed.region
    assert len(plan(64 * GIB, size=500).regions) >= 2 * ENOUGH_REGIONS


def test_workers_of_a_given_memory_are_as_many_as_fit():
    machine = Machine(cores=16, memory_bytes=10 * GIB)
    plan = plan_of("zyx", (500, 500, 500), machine=machine, wishes=Wishes(worker_memory_bytes=3 * GIB))
    assert (plan.workers, plan.memory_bytes) == (3, 3 * GIB)


def test_a_disk_too_small_even_for_compressed_voxels_is_refused_with_both_sizes():
    # 1000³ fine voxels of 4 bytes: 3.7 GiB.
    def machine(free: int) -> Machine:
        return Machine(cores=2, memory_bytes=64 * GIB, disk_free_bytes=free)

    with pytest.raises(PlanError, match=r"the output has 3\.7 GiB before compression; the disk has 0\.3 GiB free"):
        plan_of("zyx", (500, 500, 500), machine=machine(GIB // 3))
    assert plan_of("zyx", (500, 500, 500), machine=machine(GIB)).disk_free_bytes == GIB


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(shard={"y": 100}), r"axis y: shards of 100 voxels and chunks of 64.*Use --shards y=64"),
        (Wishes(chunk={"x": 3}, shard={"x": 9}), r"axis x: shards of 9 .* the factor 2\. Use --shards x=6"),
        (Wishes(tile={"z": 4}), r"axis z: a tile of 4 voxels is shorter than its halo of 5\. Use --tile z=5"),
        (Wishes(tile={"z": 0}), r"--tile z=0: at least 1 voxel is needed"),
        (Wishes(chunk={"z": -64}), r"--chunks z=-64"),
        (Wishes(shard={"z": 0}), r"--shards z=0"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_with_one_that_can(wishes, message):
    with pytest.raises(PlanError, match=message):
        plan_of("zyx", (200, 200, 200), wishes=wishes)


@pytest.mark.parametrize(
    ("version", "what", "lengths"),
    [("0.5", "shards", {"z": 512, "y": 1024, "x": 1024}), ("0.4", "chunks", {"z": 512, "y": 1024, "x": 1024})],
)
def test_chunks_and_shards_that_no_codec_takes_are_refused_by_the_plan(version, what, lengths):
    wishes = Wishes(version=version, chunk=lengths, tile={"z": 5, "y": 5, "x": 5})
    with pytest.raises(PlanError, match=rf"{what} of \(512, 1024, 1024\) .* 2147483648 is too much.*smaller --{what}"):
        plan_of("zyx", (1000, 1000, 1000), wishes=wishes)
    plan_of("zyx", (1000, 1000, 1000), wishes=replace(wishes, chunk={**lengths, "z": 510}))


def test_an_axis_without_voxels_is_refused():
    with pytest.raises(PlanError, match="axis y has 0 voxels"):
        plan_of("zyx", (5, 0, 5))


def test_a_million_million_voxels_are_planned_at_once_and_their_regions_made_one_by_one():
    started = time.process_time()
    plan = plan_of("tczyx", (100, 4, 1000, 1600, 1600), wishes=Wishes(shard=dict.fromkeys("zyx", 64)))
    series = plan_of("tyx", (10**7, 32, 32))
    assert math.prod(plan.coarse.shape) > 10**12
    assert min(len(plan.regions), len(series.regions)) >= 10**7
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for region in itertools.islice(plan.regions, 20_000):
            assert region.stop[0] == 1
        assert plan.regions.at(len(plan.regions) - 1).stop == plan.fine.shape
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 10**6  # a list of so few would take 10 MB
    assert time.process_time() - started < 5


def test_a_plan_prints_as_plain_values_by_axis():
    import json

    plan = plan_of("czyx", (2, 30, 40, 50), factor=(1, 1, 2, 2))
    printed = json.loads(json.dumps(plan.to_json()))
    assert printed["input_shape"] == [2, 30, 40, 50]
    assert printed["output_shape"] == [2, 30, 80, 100]
    assert printed["factor"] == {"c": 1, "z": 1, "y": 2, "x": 2}
    assert printed["halo"] == {"c": 0, "z": 5, "y": 5, "x": 5}
    assert printed["regions"] == len(plan.regions) == math.prod(plan.regions.counts)
    assert printed["redundant_compute_percent"] == round(100 * (plan.redundancy - 1), 1)

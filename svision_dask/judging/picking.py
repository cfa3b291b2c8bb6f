"""Which channel and time point of each image are judged: the same one, also where AFTER was made of a few of BEFORE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from svision_dask.errors import UsageError
from svision_dask.geometry import Grid
from svision_dask.opening.selection import channel_number
from svision_dask.volume import Volume

Wanted = Mapping[str, int | str | None]
"""Along ``"c"`` and ``"t"``: a number from 0, or the name of a channel, or None for the first that there is."""
Picked = Mapping[str, int]
"""Which one of each image, along those axes that it has."""
WORDS = {"c": ("channel", "channels"), "t": ("time", "time points")}


@dataclass(frozen=True, kw_only=True)
class Held:
    """The channels and time points of an image."""

    name: str
    counts: Mapping[str, int]
    """How many there are, along those axes that there are."""
    names: Sequence[str] = ()
    """Of the channels, where they have any."""
    chosen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Which ones of the image that it was taken from or made of, as far as that is known."""


def held(volume: Volume, made: Mapping[str, Any] | None = None) -> Held:
    """Say what a volume holds; ``made`` is what it says of how it was made, where it is an output."""
    counts = _counts(volume.grid)
    chosen = {axis: _origin(axis, n, made or {}, volume.chosen.get(axis)) for axis, n in counts.items()}
    return Held(name=volume.name or "the volume", counts=counts, names=volume.channels, chosen=chosen)


def held_so_far(name: str, grid: Grid, made: Mapping[str, Any]) -> Held:
    """Say the same of an output in the making, which cannot be opened yet."""
    counts = _counts(grid)
    return Held(name=name, counts=counts, chosen={axis: _origin(axis, n, made, None) for axis, n in counts.items()})


def _counts(grid: Grid) -> dict[str, int]:
    return {axis: n for axis, n in zip(grid.axes, grid.shape, strict=True) if axis in WORDS}


def _origin(axis: str, count: int, made: Mapping[str, Any], taken: tuple[int, ...] | None) -> tuple[int, ...]:
    """Say which ones an image was made of; files of other programs, and of versions before, do not say: then none."""
    chosen = made.get("chosen")
    if not isinstance(chosen, Mapping):
        return taken or ()
    said = chosen.get(axis)
    origin = said if isinstance(said, list) else range(count if taken is None else max(taken) + 1)
    which = range(len(origin)) if taken is None else taken
    return tuple(origin[i] for i in which) if len(which) == count and max(which) < len(origin) else ()


def pick(wanted: Wanted, before: Held, after: Held) -> tuple[Picked, Picked, list[str]]:
    """Find which one of BEFORE is wanted, and which one of AFTER was made of it.

    Parameters
    ----------
    wanted
        As BEFORE counts or names them; by default, the first that AFTER was made of.
    before, after
        What there is.

    Returns
    -------
    tuple
        What is picked of BEFORE, what of AFTER, and warnings.

    Raises
    ------
    UsageError
        If one has no such channel or time point, or nobody knows which of them belong together.
    """
    first, second, warnings = {}, {}, []
    for axis, (option, words) in WORDS.items():
        count, partners = before.counts.get(axis, 1), _partners(axis, before, after)
        given = wanted.get(axis)
        place = min(partners, key=partners.__getitem__) if given is None else pick_one(axis, given, before)
        if place not in partners:
            made_of = ", ".join(map(str, sorted(partners)))
            raise UsageError(f"--{option} {given}: {after.name} was made of {words} {made_of}. Give one of them.")
        first[axis], second[axis] = place, partners[place]
        if given is None and count > 1 and len(set(partners.values())) < len(partners):
            warnings.append(f"AFTER does not say of which of {count} {words} it was made; --{option} names another one")
        if max(count, after.counts.get(axis, 1)) > 1:
            warnings.append(f"{words[:-1]} {place} of {count} is compared, no other")
    return _along(first, before), _along(second, after), warnings


def pick_one(axis: str, given: int | str, image: Held) -> int:
    """Find the number of a channel or time point.

    Raises
    ------
    UsageError
        If there is none such.
    """
    count = image.counts.get(axis, 1)
    if axis == "c":
        return channel_number(given, image.names, count)
    number = int(given) if isinstance(given, int) or given.isdecimal() else -1
    if not 0 <= number < count:
        raise UsageError(f"--time {given}: {image.name} has {count}, counted from 0. Give one of them.")
    return number


def pick_reference(truth: Held, before: Held, after: Held, places: tuple[Picked, Picked]) -> Picked:
    """Find which one of a truth goes with them: a truth has those of AFTER, or those of BEFORE, or a single one.

    Raises
    ------
    UsageError
        If it has another number of them.
    """
    found = {}
    for axis, count in truth.counts.items():
        likely = [
            of[axis] for of, image in ((places[1], after), (places[0], before)) if image.counts.get(axis) == count
        ]
        if not likely and count > 1:
            words = WORDS[axis][1]
            raise UsageError(
                f"--reference {truth.name} has {count} {words}, {after.name} {after.counts.get(axis, 1)}. Give a truth "
                "with as many, or with one."
            )
        found[axis] = likely[0] if likely else 0
    return found


def _partners(axis: str, before: Held, after: Held) -> dict[int, int]:
    """Which one of AFTER was made of which of BEFORE; where AFTER has one and does not say, of any."""
    count, made = before.counts.get(axis, 1), after.counts.get(axis, 1)
    known = before.chosen.get(axis) or tuple(range(count))
    origin = after.chosen.get(axis, ())
    if set(origin) & set(known):
        return {known.index(each): place for place, each in enumerate(origin) if each in known}
    if count == made:
        return {place: place for place in range(count)}
    if made == 1:
        return dict.fromkeys(range(count), 0)
    raise UsageError(
        f"{after.name} has {made} {WORDS[axis][1]}, {before.name} {count}, and does not say which belong together. "
        "Give the volume that it was made from."
    )


def _along(places: Mapping[str, int], image: Held) -> Picked:
    return {axis: place for axis, place in places.items() if axis in image.counts}

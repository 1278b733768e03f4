"""What may be true of images while operations are under way, and what is seen.

An operation takes effect at some moment between its call and its answer. If its host is killed, it may
have taken effect or not. So there is a set of possible states of the images. Each answer and each
observation leaves those that agree with it. When none is left, something was lost, or something was
seen that never existed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diskyard.model.records import ImageKind, Strategy

Key = tuple[str, str]
"""Repository and image id."""


@dataclass(frozen=True)
class Known:
    """One image as its callers know it.

    :param complete: whether it has been seen usable; from then on it must stay so.
    :param attached_to: the number of the host that has it prepared for a guest.
    """

    kind: ImageKind
    data: bytes
    user_data: Any
    strategy: Strategy
    complete: bool
    attached_to: int | None = None


Images = Mapping[Key, Known]
Stage = Callable[[Images, Any], "tuple[Images, Any] | None"]
"""Given the images and what the operation remembers: both afterwards; None if it cannot be done now."""


@dataclass(frozen=True)
class Seen:
    """What listImages shows of one image."""

    kind: ImageKind
    size_bytes: int
    user_data: Any
    strategy: Strategy
    usable: bool
    attachments: int


@dataclass(frozen=True)
class Possible:
    """One possible state.

    :param going: for each operation under way, how many of its stages are done, and what it
        remembers of them.
    """

    images: Images
    going: Mapping[int, tuple[int, Any]]


class Possibilities:
    """Every state that agrees with all answers and observations."""

    def __init__(self) -> None:
        self.states = [Possible({}, {})]
        self._stages: dict[int, Sequence[Stage]] = {}
        self._count = 0

    @property
    def images(self) -> Images:
        """The most likely images: with nothing done that was not answered."""
        return self.states[0].images

    @property
    def under_way(self) -> bool:
        """Whether any operation has not been answered yet."""
        return bool(self._stages)

    # -- operations ---------------------------------------------------------------------

    def begin(self, stages: Sequence[Stage]) -> int:
        """Record that an operation is called. Return the number that identifies it later."""
        self._count += 1
        self._stages[self._count] = stages
        self.states = [replace(state, going={**state.going, self._count: (0, None)}) for state in self.states]
        return self._count

    def can_be_done(self, number: int) -> bool:
        """Whether the operation can be completed in every state."""
        whole = len(self._stages[number])
        return all(
            any(found.going[number][0] == whole for found in _spread([state], self._stages))
            for state in self.states
        )

    def answered(self, number: int) -> Any:
        """Record that the operation was done. Return what it remembers, in one of the states."""
        self._spread()
        whole = len(self._stages[number])
        self._keep(lambda state: state.going[number][0] == whole, "what was answered cannot have been done")
        remembered = self.states[0].going[number][1]
        self._forget(number)
        return remembered

    def refused(self, number: int) -> None:
        """Record that the operation failed: nothing of it may be seen."""
        self._spread()
        whole = len(self._stages[number])
        self._keep(lambda state: state.going[number][0] < whole, "an error was answered for what was done")
        self._forget(number)

    def died(self, number: int) -> None:
        """Record that the operation's host was killed: it was done, or it never will be."""
        self._spread()
        self._forget(number)

    def remembered(self, number: int) -> list[Any]:
        """What the operation remembers, in every state in which it may be done."""
        self._spread()
        whole = len(self._stages[number])
        return [state.going[number][1] for state in self.states if state.going[number][0] == whole]

    def change(self, change: Callable[[Images], Images]) -> None:
        """Record a change that happens at once, such as a guest's write."""
        self._spread()
        self.states = [replace(state, images=change(state.images)) for state in self.states]

    # -- observations -----------------------------------------------------------------------

    def see(self, seen: Mapping[Key, Seen]) -> None:
        """Record that all images were listed. An image that was usable must stay usable."""
        self._spread()
        before = self.states
        self.states = [state for state in before if _agrees(state.images, seen)]
        if not self.states:
            raise AssertionError(f"listed is what cannot be: {_differences(before[0].images, seen)}")
        self.states = _different(
            [
                replace(
                    state,
                    images={
                        key: replace(image, complete=True) if seen[key].usable else image
                        for key, image in state.images.items()
                    },
                )
                for state in self.states
            ]
        )

    def see_bytes(self, key: Key, data: bytes) -> None:
        """Record that an image was read."""
        self._spread()
        expected = self.images[key].data if key in self.images else b""
        self._keep(
            lambda state: key in state.images and state.images[key].data == data,
            f"bytes of {key[0]}: {difference(data, expected)}",
        )

    # -- states -------------------------------------------------------------------------------

    def _spread(self) -> None:
        self.states = _spread(self.states, self._stages)

    def _keep(self, agrees: Callable[[Possible], bool], otherwise: str) -> None:
        kept = [state for state in self.states if agrees(state)]
        if not kept:
            raise AssertionError(otherwise)
        self.states = kept

    def _forget(self, number: int) -> None:
        del self._stages[number]
        self.states = _different(
            [
                replace(state, going={key: found for key, found in state.going.items() if key != number})
                for state in self.states
            ]
        )


def _spread(states: Sequence[Possible], stages: Mapping[int, Sequence[Stage]]) -> list[Possible]:
    """The states, and those in which any operations under way have gone on, in any order."""
    found = list(states)
    for state in found:  # the list grows during the loop
        for number, (done, remembered) in state.going.items():
            if done == len(stages[number]):
                continue
            after = stages[number][done](state.images, remembered)
            if after is not None:
                going = {**state.going, number: (done + 1, after[1])}
                following = Possible(after[0], going)
                if following not in found:
                    found.append(following)
    return found


def _different(states: Sequence[Possible]) -> list[Possible]:
    found: list[Possible] = []
    for state in states:
        if state not in found:
            found.append(state)
    return found


def _agrees(images: Images, seen: Mapping[Key, Seen]) -> bool:
    return images.keys() == seen.keys() and all(_is_as_seen(images[key], seen[key]) for key in seen)


def _is_as_seen(image: Known, seen: Seen) -> bool:
    return (
        image.kind == seen.kind
        and len(image.data) == seen.size_bytes
        and image.user_data == seen.user_data
        and image.strategy == seen.strategy
        and (seen.usable or not image.complete)
        and seen.attachments == (image.attached_to is not None)
    )


def _differences(images: Images, seen: Mapping[Key, Seen]) -> str:
    found = [f"{key} is not there" for key in images if key not in seen]
    found += [f"{key} is there" for key in seen if key not in images]
    for key in seen:
        if key in images and not _is_as_seen(images[key], seen[key]):
            image = replace(images[key], data=b"")
            found.append(f"{image}, {len(images[key].data)} bytes, is shown as {seen[key]}")
    return "; ".join(found)


def difference(actual: bytes, expected: bytes) -> str:
    """Where bytes differ, in a few words."""
    if len(actual) != len(expected):
        return f"{len(actual)} bytes instead of {len(expected)}"
    sectors = [
        at // 512 for at in range(0, len(actual), 512) if actual[at : at + 512] != expected[at : at + 512]
    ]
    if not sectors:
        return "as they should be in one state that is possible"
    first = sectors[0] * 512
    return (
        f"{len(sectors)} sectors differ, the first at {first}: "
        f"{actual[first : first + 4].hex()} instead of {expected[first : first + 4].hex()}"
    )

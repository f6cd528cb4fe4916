"""What tells of a trial on a command line, so that it is run again: the other half of Trial.command."""

from __future__ import annotations

import argparse
import itertools
import shlex

from tests.sim import arguments as values
from tests.sim.faults import KINDS, Fault
from tests.sim.scenes import SCENES
from tests.sim.trial import LASTS_S, SIZES, Trial

FAULT, SIZE, MOST = "KIND:WHO:EVENT:NUMBER", "NAME=COUNT", 99
FAULT_IN_WORDS = f"{FAULT}: a kind of fault, then numbers from 0: of the process, the event, and the fault"
BEGINS_WITH = "-m tests.sim again"  # behind whichever Python


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of a trial."""
    parser.add_argument(
        "--seed", type=int, default=1, help="of callers at random under faults, or of the scene (%(default)s)"
    )
    parser.add_argument("--lasts-s", type=values.seconds, help=f"how long callers at random go on ({LASTS_S:g})")
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        metavar=SIZE,
        type=_size,
        dest="sizes",
        help=f"fewer of them: {', '.join(SIZES)}",
    )
    parser.add_argument("--faults", type=_numbers, help="of the seed's faults only those: numbers with commas, or none")
    parser.add_argument(
        "--scene", choices=sorted(SCENES), metavar="SCENE", help=f"not at random: {', '.join(sorted(SCENES))}"
    )
    parser.add_argument(
        "--fault", action="append", default=[], metavar=FAULT, type=_fault, help="in the scene, after so many events"
    )
    parser.add_argument(
        "--delay",
        action="append",
        default=[],
        metavar="EVENT",
        type=values.event,
        help="in the scene: comes behind its next rival",
    )


def trial_of(arguments: argparse.Namespace) -> Trial:
    """The trial that they tell of. Raises ValueError where they contradict each other."""
    at_random = {"--lasts-s": arguments.lasts_s, "--with": arguments.sizes or None, "--faults": arguments.faults}
    if arguments.scene is not None:
        if given := [name for name, value in at_random.items() if value is not None]:
            raise ValueError(f"{given[0]}: not for a scene")
        _check_scene(arguments)
        return Trial.of_scene(arguments.scene, *arguments.fault, seed=arguments.seed, delays=tuple(arguments.delay))
    if arguments.fault or arguments.delay:
        raise ValueError(f"{'--fault' if arguments.fault else '--delay'}: only with --scene")
    trial = Trial.drawn(arguments.seed, lasts_s=LASTS_S if arguments.lasts_s is None else arguments.lasts_s)
    if arguments.faults is not None:
        unknown = arguments.faults - {fault.number for fault in trial.faults}
        if unknown:
            raise ValueError(f"--faults: seed {trial.seed} has no fault {min(unknown)}")
        trial = trial.with_faults(tuple(fault for fault in trial.faults if fault.number in arguments.faults))
    return trial.with_sizes(dict(arguments.sizes))


def _check_scene(arguments: argparse.Namespace) -> None:
    circumstances = Trial.of_scene(arguments.scene).circumstances
    processes = circumstances.processes + circumstances.programs
    for fault in arguments.fault:
        if fault.who >= processes:
            raise ValueError(f"--fault: {arguments.scene} has no process {fault.who}, only 0 to {processes - 1}")
    for before, delay in itertools.pairwise(arguments.delay):
        if delay < before:
            raise ValueError(f"--delay: {delay} comes before {before}")


def parsed(command: str) -> Trial:
    """The trial whose command it is. Raises ValueError."""
    _, found, words = command.partition(BEGINS_WITH)
    if not found:
        raise ValueError(f"{command!r} is no command {BEGINS_WITH!r}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    try:
        arguments, unknown = parser.parse_known_args(shlex.split(words))
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    if unknown:
        raise ValueError(f"{unknown[0]} is not known")
    return trial_of(arguments)


def _fault(text: str) -> Fault:
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts[1:]):
        raise argparse.ArgumentTypeError(f"{text!r} is not {FAULT_IN_WORDS}")
    kind, who, event, number = parts
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{kind!r} is no kind of fault; there are {', '.join(KINDS)}")
    return Fault(kind, int(who), at_event=int(event), number=int(number))


def _size(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if name not in SIZES or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not {SIZE} with one of {', '.join(SIZES)}")
    if not SIZES[name] <= int(count) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not from {SIZES[name]} to {MOST}")
    return name, int(count)


def _numbers(text: str) -> frozenset[int]:
    if text == "none":
        return frozenset()
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither numbers with commas nor none")
    return frozenset(int(number) for number in numbers)

"""A trial's command is understood again, and what is no command is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.again import parsed
from tests.sim.faults import KINDS, Fault
from tests.sim.scenes import SCENES
from tests.sim.trial import PROGRAM, SIZES, Trial

counts = st.integers(0, 10_000)
in_scenes = st.builds(
    lambda scene, seed, faults, delays: Trial.of_scene(scene, *faults, seed=seed, delays=tuple(delays)),
    st.sampled_from(sorted(SCENES)),
    st.integers(1, 10**9),
    st.lists(
        st.builds(
            lambda kind, who, event, number: Fault(kind, who, at_event=event, number=number),
            st.sampled_from(sorted(KINDS)),
            st.integers(0, 2),
            counts,
            counts,
        ),
        max_size=3,
    ),
    st.lists(counts, max_size=3).map(sorted),
)


@st.composite
def at_random(draw: st.DrawFn) -> Trial:
    """A trial of a seed, or some of it."""
    trial = Trial.drawn(draw(st.integers(0, 10**9)), lasts_s=draw(st.sampled_from((16.0, 8.0, 0.1 + 0.2, 2.625))))
    if draw(st.booleans()):
        kept = draw(st.sets(st.sampled_from(trial.faults))) if trial.faults else set()
        trial = trial.with_faults(tuple(fault for fault in trial.faults if fault in kept))
    return trial.with_sizes(draw(st.dictionaries(st.sampled_from(sorted(SIZES)), st.integers(1, 9))))


@given(in_scenes | at_random())
@settings(max_examples=300, deadline=None)
def test_a_trials_command_is_understood_as_the_same_trial(trial: Trial) -> None:
    assert parsed(trial.command) == trial


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--scene nowhere", "--scene"),
        ("--scene choose --fault stal:1:2:3", "'stal'"),
        ("--scene choose --fault stall:1:2", "KIND:WHO:EVENT:NUMBER"),
        ("--scene choose --fault stall:x:2:3", "KIND:WHO:EVENT:NUMBER"),
        ("--scene choose --delay early", "--delay"),
        ("--scene choose --faults 1", "--faults: not for a scene"),
        ("--fault stall:0:1:1", "--fault: only with --scene"),
        ("--delay 7", "--delay: only with --scene"),
        ("--seed 1 --faults 1,x", "--faults"),
        ("--seed 1 --faults 99999", "--faults: seed 1 has no fault 99999"),
        ("--with crowds=2", "--with"),
        ("--with processes=0", "--with: 'processes=0' is not from 1 to 99"),
        ("--with workers=0", "--with"),
        ("--with programs=100", "--with: 'programs=100' is not from 0 to 99"),
        ("--with programs=-1", "--with"),
        ("--lasts-s nan", "--lasts-s"),
        ("--lasts-s inf", "--lasts-s"),
        ("--lasts-s -3", "--lasts-s"),
        ("--lasts-s 0", "--lasts-s"),
        ("--scene choose --fault kill:3:2:1", "--fault: choose has no process 3, only 0 to 2"),
        ("--scene beside --fault kill:5:2:1", "--fault: beside has no process 5, only 0 to 4"),
        ("--scene choose --delay -1", "--delay: '-1'"),
        ("--scene choose --delay 9 --delay 7", "--delay: 7 comes before 9"),
        ("--colour red", "--colour"),
    ],
)
def test_what_is_no_trial_is_refused_by_name(words: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parsed(f"{PROGRAM} again {words}")


def test_another_command_is_refused() -> None:
    with pytest.raises(ValueError, match="is no command"):
        parsed("python -m tests.chaos --seed 1")


@pytest.mark.parametrize("python", ["python", ".venv/bin/python", "/usr/bin/python3"])
def test_it_is_the_same_trial_whichever_python_runs_it(python: str) -> None:
    assert parsed(f"{python} -m tests.sim again --scene choose --delay 7") == Trial.of_scene("choose", delays=(7,))


def test_a_run_tells_what_it_did_not_come_to() -> None:
    kill = Fault("kill", 0, at_event=999_999, number=1)
    assert Trial.of_scene("acquire", kill).run().missed == (999_999,)
    assert Trial.of_scene("acquire", delays=(60, 99_999)).run().missed == (99_999,)
    assert Trial.of_scene("acquire", replace(kill, at_event=60), delays=(50,)).run().missed == ()

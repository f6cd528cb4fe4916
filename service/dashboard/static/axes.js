// Where an axis ends and has its ticks: round numbers (1, 2, 5 and their tens), and times that a clock has marks for.
"use strict";
const axes = (() => {
  const TIME_STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

  // The least of 1, 2, 5, 10, 20, 50, … that is not below.
  function roundStep(least) {
    const ten = 10 ** Math.floor(Math.log10(least));
    return +([1, 2, 5, 10].find((each) => each * ten >= least * (1 - 1e-9)) * ten).toPrecision(1);
  }

  const multiples = (step, from, until) => {
    const ticks = [];
    for (let count = Math.ceil(from / step - 1e-9); count * step <= until + step * 1e-9; count++) ticks.push(+(count * step).toPrecision(12));
    return ticks;
  };

  // From 0 to the first tick that is not below `high`, with at most so many steps.
  function linear(high, most = 5) {
    const step = roundStep(Math.max(high, 1) / most);
    return multiples(step, 0, Math.ceil(Math.max(high, 1) / step - 1e-9) * step);
  }

  // Tens from below `low` to above `high`; over few tens 2 and 5 of each as well.
  function logarithmic(low, high) {
    const first = Math.floor(Math.log10(low) + 1e-9), last = Math.max(first + 1, Math.ceil(Math.log10(high) - 1e-9));
    const ticks = [];
    for (let ten = first; ten <= last; ten++) for (const each of last - first <= 2 && ten < last ? [1, 2, 5] : [1]) ticks.push(+(each * 10 ** ten).toPrecision(1));
    return ticks;
  }

  // Unix seconds, UTC.
  function times(from, until, most) {
    return multiples(TIME_STEPS_S.find((each) => (until - from) / each <= most) ?? TIME_STEPS_S.at(-1), from, until);
  }

  return { linear, logarithmic, times };
})();
